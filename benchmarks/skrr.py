"""Whether Skrr keeps images, and whether its D tells: every method's plans on the demo's own text-to-image model.

    python benchmarks/skrr.py [--count N] [--draws N] [--captions N] [--workers N] [--work DIR]

Searches plans for the shipped encoder, exports each, draws the same images with each from the same noise, and has the
demo's judge score them. About an hour on 2 cores. Stopped, it goes on where it was: plans and images are kept.
Nothing is downloaded.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from concurrent.futures import Executor, Future, ProcessPoolExecutor, as_completed
from dataclasses import replace
from multiprocessing import get_context

import torch
from exporters import positive
from report import add_work_argument, write_records
from skrr_measure import Measured, measure
from skrr_plans import METHODS, RANDOM, SEEDS, Settings, dense, search
from skrr_plot import picture
from skrr_summary import Prompts, not_as_claimed, print_tables, records_of

COUNT, DRAWS = 50, 3
"""The prompts of these tasks were kept out of the model's training."""
CAPTIONS = 128


def parse_arguments() -> argparse.Namespace:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=positive, default=COUNT, help="tasks in a category (default: %(default)s)")
    parser.add_argument("--draws", type=positive, default=DRAWS, help="seeds of tasks (default: %(default)s)")
    parser.add_argument("--captions", type=positive, default=CAPTIONS, help="to search on (default: %(default)s)")
    cores = len(os.sched_getaffinity(0))
    parser.add_argument("--workers", type=positive, default=cores, help="processes, of one thread each (default: all)")
    add_work_argument(parser)
    return parser.parse_args()


def main() -> None:
    """Search, measure, tell."""
    arguments = parse_arguments()
    settings = Settings(arguments.work, arguments.captions, arguments.draws, arguments.count)
    settings.directory.mkdir(parents=True, exist_ok=True)
    # One thread each: products are so small that a second one only waits.
    with ProcessPoolExecutor(arguments.workers, get_context("spawn"), torch.set_num_threads, (1,)) as pool:
        whole, *plans = measure_all(pool, settings)
    prompts = Prompts([task.category for task in settings.tasks], settings.draws)
    records = records_of(prompts, whole, plans)
    print_tables(records, prompts, settings.captions)
    drawn = settings.work / "skrr-demo.svg"
    drawn.write_text(picture(records), encoding="utf-8")
    print(f"picture: {drawn}")
    write_records(settings.work, "skrr", records)
    if wrong := not_as_claimed(plans):
        raise SystemExit("not as claimed:\n" + "\n".join(wrong))


def measure_all(pool: Executor, settings: Settings) -> list[Measured]:
    """Measure the dense encoder; search plans, and measure each that is new as soon as it is found."""
    whole = pool.submit(measure, settings, dense()).result()
    say = Progress()
    searches = [
        pool.submit(search, settings, label, seed)
        for label in METHODS
        for seed in range(SEEDS if label == RANDOM else 1)
    ]
    jobs: dict[str, Future[Measured]] = {}
    for number, finished in enumerate(as_completed(searches), start=1):
        say(f"searched {number} of {len(searches)}")
        for subject in finished.result():
            if subject.key not in jobs:
                jobs[subject.key] = pool.submit(measure, settings, subject)
    for number, done in enumerate(as_completed(jobs.values()), start=1):
        done.result()  # or a mistake would show at the very end
        say(f"measured {number} of {len(jobs)}")
    subjects = [subject for each in searches for subject in each.result()]
    return [whole, *(replace(jobs[subject.key].result(), subject=subject) for subject in subjects)]


class Progress:
    """Says on standard error how far it is."""

    def __init__(self) -> None:
        """Start the clock."""
        self._start = time.perf_counter()

    def __call__(self, what: str) -> None:
        """Say it."""
        print(f"{what}: {time.perf_counter() - self._start:.0f} s", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
