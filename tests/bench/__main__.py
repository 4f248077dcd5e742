"""`make bench`: every benchmark of this folder, one after another. They print tables and assert nothing."""

import argparse

from tests.bench import bench_gptq, bench_sweep

BENCHMARKS = {"gptq": bench_gptq.main, "sweep": bench_sweep.main}


def main() -> None:
    """Run the named benchmarks, or all of them."""
    parser = argparse.ArgumentParser(prog="make bench", description=__doc__)
    parser.add_argument("names", nargs="*", help=f"which: {', '.join(BENCHMARKS)}")
    for name in parser.parse_args().names or BENCHMARKS:
        print(f"== {name}", flush=True)
        BENCHMARKS[name]()


main()
