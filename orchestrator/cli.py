"""The command line: verbs to functions. The one place where errors become exit codes.

Exit codes: 0 all cells SUCCEEDED or NOT_APPLICABLE, 1 some FAILED or NOT_IMPLEMENTED, 2 bad configuration, 3 something
outside is missing (or another driver holds the sweep), 70 a defect of ours (its traceback is in results/ptqbench.log),
130 interrupted, 141 nobody reads the output any more (`| head`).
"""

import argparse
import difflib
import os
import sys
from collections.abc import Callable, Sequence

from rich.console import Console

from conf.errors import ConfigError
from orchestrator.head import ClusterLostError
from workers.api import FailureKind
from workers.errors import PrerequisiteError

NOBODY_READS = 141  # as a shell reports a process that a closed pipe ended
FILE_WIDTH = 160  # columns of tables where there is no terminal to ask

OVERRIDES_HELP = """\
Overrides follow Hydra's grammar; a comma list, glob(), range() or choice() is an axis:

  ptqbench sweep                                               experiment=mini: the shipped mini LLaMA
  ptqbench plan  experiment=paper cluster=h100x8               what it would take, before anything is spent
  ptqbench sweep bits=2,3 group_size=null,64                   axes over the experiment's own
  ptqbench sweep name=mine model=hf model.repo=DIR method=rtn,gptq bits=2,3,4 \\
                 calibration=text calibration.path=FILE suite=text suite.path=FILE
  ptqbench cell  method=gptq bits=3 clip@method.clip=mse       one cell in this process, with stack traces
  ptqbench status name=mine                                    a sweep by its name, as it was started last
  ptqbench resubmit name=mine --failure OUT_OF_MEMORY,TIMEOUT  its cells that failed so; or: "mini-llama gptq w3"

Choices of a group (model, method, calibration, suite, cluster, ...) are the files of conf/<group>/.
"""

VERBS = {
    "plan": "list the cells, their support and an estimate of time, memory, disk and placement",
    "sweep": "run every cell that is not done yet",
    "cell": "run one cell in this process, for debugging",
    "status": "where each cell of a sweep stands",
    "resubmit": "run the failed cells again",
    "report": "rebuild cells.csv, report.html and report.md from the storage",
    "ui": "open the MLflow UI on this machine",
    "sync": "rebuild the MLflow view from the storage",
    "gc": "remove checkpoints that no sweep under results/ needs",
    "zoo": "list, verify or train the mini models",
    "kernels": "which version of each kernel runs here, and why",
}


class _Output(Console):
    """Standard output, which may be a pipe that is closed before all is said."""

    def on_broken_pipe(self) -> None:
        self.quiet = True
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python complains when it flushes at exit
        raise SystemExit(NOBODY_READS)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a verb and return its exit code."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    parsed = _parsed(arguments)
    width = None if sys.stdout.isatty() else FILE_WIDTH
    console = _Output(soft_wrap=True, width=width)
    errors = Console(stderr=True, soft_wrap=True)
    try:
        return _verb(parsed.verb)(parsed, console)
    except ConfigError as error:
        errors.print("[red]configuration:[/]", end=" ", highlight=False)
        errors.print(str(error), markup=False, highlight=False)
        return 2
    except PrerequisiteError as error:
        errors.print("[red]missing:[/]", end=" ", highlight=False)
        errors.print(str(error), markup=False, highlight=False)
        if isinstance(error, ClusterLostError):  # Ray's own exit waits for the cluster that is gone, then crashes
            sys.stdout.flush()
            os._exit(3)
        return 3
    except KeyboardInterrupt:
        errors.print("interrupted; what was finished is kept, the same command goes on from there", highlight=False)
        return 130
    except Exception as error:  # the border where a defect of ours becomes a message
        if parsed.verb == "cell":
            raise
        from orchestrator import crash

        errors.print("[red]internal error:[/]", end=" ", highlight=False)
        errors.print(crash.report(error, arguments), markup=False, highlight=False)
        return crash.EXIT_CODE


def _parsed(arguments: list[str]) -> argparse.Namespace:
    """Options may stand between overrides, which argparse alone allows only before or behind them."""
    parser = _parser()
    parsed, rest = parser.parse_known_args(arguments)
    if unknown := [text for text in rest if text.startswith("-") or not hasattr(parsed, "overrides")]:
        parser.error(f"unknown: {' '.join(unknown)}; `ptqbench {parsed.verb} --help` lists the options")
    if rest:
        parsed.overrides += rest
    return parsed


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="ptqbench",
        description="Post-training quantization of large language models, compared fairly.",
        epilog=OVERRIDES_HELP,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")
    for name, text in VERBS.items():
        verb = verbs.add_parser(
            name,
            help=text,
            description=text,
            epilog=OVERRIDES_HELP,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        if name == "resubmit":
            verb.add_argument(
                "--failure",
                action="extend",
                type=_kinds,
                metavar="KIND[,KIND...]",
                help=f"only cells that failed so, of {', '.join(FailureKind)}; may be given again",
            )
        if name == "ui":
            verb.add_argument("--port", type=_port, default=5000, help="on loopback, 5000 unless given")
        if name == "gc":
            verb.add_argument("--yes", action="store_true", help="really remove; without it, only say what would go")
        if name == "zoo":
            verb.add_argument("rest", nargs=argparse.REMAINDER, help="list, verify or train NAME [--out DIR]")
        elif name == "resubmit":
            cells = 'a cell by its label ("mini-llama gptq w3") or eight digits of its key, or key=value'
            verb.add_argument("overrides", nargs="*", metavar="CELL or key=value", help=cells)
        elif name != "kernels":
            verb.add_argument("overrides", nargs="*", metavar="key=value")
    return parser


def _kinds(text: str) -> list[FailureKind]:
    """`OUT_OF_MEMORY,TIMEOUT` -> two kinds of failure."""
    for name in text.split(","):
        if name not in set(FailureKind):
            near = difflib.get_close_matches(name.upper(), list(FailureKind), n=1)
            hint = f"did you mean {near[0]}? " if near else ""
            raise argparse.ArgumentTypeError(f"no kind of failure `{name}`; {hint}valid: {', '.join(FailureKind)}")
    return [FailureKind(name) for name in text.split(",")]


def _port(text: str) -> int:
    if not text.isdecimal() or not 1 <= int(text) <= 65535:
        raise argparse.ArgumentTypeError(f"`{text}` is no port: 1 to 65535")
    return int(text)


def _verb(name: str) -> Callable[[argparse.Namespace, Console], int]:
    """The function of a verb; imported late, so that --help and a bad key answer at once."""
    from orchestrator import verbs

    return {
        "plan": verbs.plan,
        "sweep": verbs.sweep,
        "cell": verbs.cell,
        "status": verbs.status,
        "resubmit": verbs.resubmit,
        "report": verbs.report,
        "ui": verbs.ui,
        "sync": verbs.sync,
        "gc": verbs.gc,
        "zoo": verbs.zoo,
        "kernels": verbs.kernels,
    }[name]


if __name__ == "__main__":
    sys.exit(main())
