"""The C++ tool's part of serve.py: cold start, memory, and latency beside the Python session."""

from __future__ import annotations

import json
import statistics
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from openers import open_library
from process import MIB, Result, run_measured
from report import PROMPTS, machine_line, measure, print_table, write_records

from skrr_export.measure.machine import cores
from skrr_export.measure.subjects import Subject
from skrr_export.measure.worker import Opener
from skrr_export.measuring import MeasureOptions

if TYPE_CHECKING:
    from collections.abc import Sequence

PROMPT = "a photo of a red cat beside a blue dog"
LARGEST_RATIO = 1.02
"""Of the C++ library's time to the Python session's."""


def cold_starts(tool: Path, bundle: Path, runs: int) -> list[dict[str, Any]]:
    """Whole processes, from start to the embedding of one prompt, in turn."""
    commands = {
        "C++: skrr-encode": [str(tool), str(bundle), "--prompt", PROMPT],
        "Python: open_session, encode_prompts": [sys.executable, "-c", _PYTHON, str(bundle), PROMPT],
    }
    results: dict[str, list[Result]] = {name: [] for name in commands}
    for _ in range(runs):
        for name, command in commands.items():
            results[name].append(run_measured(command))
    return [{"subject": name, **_medians(results[name])} for name in commands]


_PYTHON = """
import sys
from skrr_export import encode_prompts, open_session
encode_prompts(open_session(sys.argv[1]), [sys.argv[2]])
"""


def _medians(results: Sequence[Result]) -> dict[str, float]:
    names = ("wall_seconds", "peak_rss_bytes", "peak_anonymous_bytes")
    return {name: statistics.median(getattr(result, name) for result in results) for name in names}


def measure_cpp(prefix: Path, bundle: Path, checkpoint: Path, work: Path, runs: int) -> bool:
    """Measure what was installed, print and record; whether all checks passed and C++ is no slower than Python."""
    tool = prefix / "bin" / "skrr-encode"
    [library] = prefix.glob("lib*/**/libskrr.so")
    starts = cold_starts(tool, bundle, runs)
    bench = json.loads(run_measured([str(tool), str(bundle), "--bench", "--runs", str(runs), "--json"]).stdout)
    _print(starts, bench)
    write_records(work, "serve-cpp-start", [*starts, {"subject": "bench", **bench}])
    opener = Opener.of(open_library, library=library, bundle=bundle, threads=cores())
    peer = Subject(name="cpp", title="C++ library, mapped", role="peer", planned=True, opener=opener)
    options = MeasureOptions(reference=checkpoint, peers=(peer,), targets=("onnx",), runs=runs, max_prompts=PROMPTS)
    passed = measure("serve-cpp", bundle, options, work)
    return passed and all(ratio <= LARGEST_RATIO for ratio in ratios(work))


def ratios(work: Path) -> list[float]:
    """The C++ library's time over the Python session's, a number for each length."""
    document = json.loads((work / "serve-cpp.json").read_text(encoding="utf-8"))
    found = {subject["name"]: subject["latencies"] for subject in document["subjects"]}
    return [ours["median"] / python["median"] for ours, python in zip(found["cpp"], found["onnx"], strict=True)]


def _print(starts: Sequence[dict[str, Any]], bench: dict[str, Any]) -> None:
    rows = [
        [
            start["subject"],
            f"{start['wall_seconds']:.2f}",
            f"{start['peak_anonymous_bytes'] / MIB:,.0f}",
            f"{start['peak_rss_bytes'] / MIB:,.0f}",
        ]
        for start in starts
    ]
    print_table(
        "From nothing to the first embedding: whole processes",
        ("", "seconds", "anonymous MiB", "peak RSS MiB"),
        rows,
        f"{machine_line()}; medians; one prompt.\nskrr-encode --bench: {json.dumps(bench)}",
    )
