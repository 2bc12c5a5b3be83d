"""How fast plans are found, how good they are, and whether a T5-XXL fits.

    python benchmarks/search.py --part speed      the search beside the paper's algorithms written plainly
    python benchmarks/search.py --part quality    plans of every method on held-out prompts, trained weights
    python benchmarks/search.py --part xxl        re-use for a published order on a T5-XXL, on this machine
    python benchmarks/search.py --part all

Nothing is downloaded. Times are only worth quoting from a machine that does nothing else.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from exporters import positive
from process import CommandError
from report import add_work_argument, write_records
from search_quality import HELD_OUT, measure_quality
from search_speed import DEPTHS, measure_speed
from search_xxl import DTYPES, PROMPTS, measure_xxl

PARTS = ("speed", "quality", "xxl")
THREADS = 2


def numbers(text: str) -> tuple[int, ...]:
    """Whole numbers above 0, separated by commas, for argparse."""
    return tuple(positive(word) for word in text.split(","))


def names(text: str) -> tuple[str, ...]:
    """Names of precisions, separated by commas, for argparse."""
    found = tuple(text.split(","))
    if not set(found) <= set(DTYPES):
        raise argparse.ArgumentTypeError(f"not all of {text} are among {', '.join(DTYPES)}")
    return found


def parse_arguments() -> argparse.Namespace:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", choices=(*PARTS, "all"), default="all", help="(default: %(default)s)")
    parser.add_argument("--threads", type=positive, default=THREADS, help="of every process (default: %(default)s)")
    add_work_argument(parser)
    speed = parser.add_argument_group("speed")
    speed.add_argument("--runs", type=positive, default=1, help="of each search (default: %(default)s)")
    speed.add_argument("--depths", type=numbers, default=DEPTHS, metavar="N,...", help="layers (default: 6,12,24)")
    quality = parser.add_argument_group("quality")
    quality.add_argument("--held-out", type=positive, default=HELD_OUT, help="prompts (default: %(default)s)")
    xxl = parser.add_argument_group("xxl")
    xxl.add_argument("--prompts", type=positive, default=PROMPTS, help="to calibrate on (default: %(default)s)")
    xxl.add_argument("--dtypes", type=names, default=("bf16",), metavar="NAMES", help="of bf16,fp32 (default: bf16)")
    xxl.add_argument("--short", action="store_true", help="prompts of a dozen tokens; default: captions of about 180")
    xxl.add_argument("--estimate", action="store_true", help="only measure one forward, and say what the job will take")
    return parser.parse_args()


def main() -> None:
    """Run the parts that were asked for; a part's records are written as soon as it is done."""
    arguments = parse_arguments()
    work: Path = arguments.work
    wrong: list[str] = []
    try:
        for part in PARTS if arguments.part == "all" else (arguments.part,):
            if part == "speed":
                records, found = measure_speed(work, arguments.runs, arguments.threads, arguments.depths)
            elif part == "quality":
                records, found = measure_quality(work, arguments.threads, arguments.held_out)
            else:
                records, found = measure_xxl(
                    work,
                    arguments.threads,
                    arguments.prompts,
                    arguments.dtypes,
                    short=arguments.short,
                    estimate=arguments.estimate,
                )
            write_records(work, f"search-{part}", records)
            wrong += found
    except CommandError as error:
        raise SystemExit(f"a measured command failed: {error}") from error
    if wrong:
        raise SystemExit("not as claimed:\n" + "\n".join(wrong))


if __name__ == "__main__":
    main()
