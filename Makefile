# ARGS='...' is handed on: to ptqbench (make sweep ARGS='bits=2,3'), or to pytest (make test ARGS='-k gptq').
# make itself exits 2 whenever a command fails; its line "Error N" shows the command's own code (README, exit codes).
SHELL := bash
.NOTPARALLEL:
.DEFAULT_GOAL := help

# `make gpu-test PYTHON=python3` uses an interpreter that has torch already, and installs nothing.
ifeq ($(origin PYTHON),command line)
setup_first :=
else
PYTHON := .venv/bin/python
setup_first := setup
endif

VERBS := sweep plan status resubmit report ui sync gc zoo
.PHONY: help setup $(VERBS) test check lint bench soak gpu-test gpu-bench

help: ## these lines
	@sed -n 's/^\([a-z][a-z-]*\):.*## /  make \1\t/p' Makefile | expand -t 18

setup: ## install what the lists in locks/ say into .venv (every target does so first)
	@bash locks/setup.sh

# One rule serves them all; the empty rules below are what `make help` lists.
$(VERBS): setup
	@.venv/bin/ptqbench $@ $(ARGS)
sweep: ## run a grid; again: only what is new
plan: ## cells, GPU-hours, memory and disk, before anything is spent
status: ## how far the sweep is
resubmit: ## run what failed again
report: ## tables and plots of a sweep
ui: ## MLflow's pages
sync: ## rebuild MLflow's view from the attempts
gc: ## remove checkpoints that no kept cell needs
zoo: ## the mini models

# The fast tests come first, so that a mistake shows within a minute. The slow ones start processes of their own and wait
# for them: more of these at a time than there are cores, and in the order of their files, because the longest stand alone
# in theirs and would come last.
PYTEST := $(PYTHON) -m pytest
test: setup ## every test that needs neither GPU nor network; ARGS: only those
ifdef ARGS
	@$(PYTEST) $(ARGS)
else
	@OMP_NUM_THREADS=1 $(PYTEST) -m "not slow and not gpu" -n 2 --dist loadfile --maxfail 10
	@$(PYTEST) -m "slow and not gpu" -n 3 --dist loadfile --no-loadscope-reorder --maxfail 10 --durations 20
endif

lint: setup
	@.venv/bin/ruff check
	@.venv/bin/ruff format --check
	@.venv/bin/lint-imports
	@.venv/bin/mypy

check: lint test ## formatting, layers, types, tests: what continuous integration asks first

bench: setup ## time what tests/bench holds, on the CPU
	@for file in tests/bench/bench_*.py; do PYTHONPATH=. $(PYTHON) $$file $(ARGS) || exit; done

soak: setup ## kill processes of real sweeps on a real cluster, an hour of it; ARGS='--rounds 5 --seed 1'
	@OMP_NUM_THREADS=1 PYTHONPATH=. $(PYTHON) -m tests.soak $(ARGS)

gpu-test: $(setup_first) ## the tests that need a GPU
	@$(PYTEST) -m gpu $(ARGS)

gpu-bench: $(setup_first) ## time what tests/gpu holds, on the GPU
	@for file in tests/gpu/bench_*.py; do PYTHONPATH=. $(PYTHON) $$file $(ARGS) || exit; done
