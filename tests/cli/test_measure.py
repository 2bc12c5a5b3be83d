"""`measure` and `compare`: what they print and write, and how they fail."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from skrr_export import measuring
from skrr_export.measure.record import Measurement
from skrr_export.measuring import MeasureOptions
from tests.cli.conftest import Run
from tests.page import measurements

QUICK = ("--sequence", "4,9", "--runs", 2, "--processes", 1, "--threads", 1, "--max-prompts", 3, "--to", "onnx")


class Measured:
    """Stands in for a measurement, which takes half a minute."""

    def __init__(self) -> None:
        self.options: list[MeasureOptions] = []
        self.result = measurements.full()

    def __call__(self, bundle: Any, options: MeasureOptions, progress: Any) -> Measurement:
        self.options.append(options)
        return self.result


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> Measured:
    stand_in = Measured()
    monkeypatch.setattr(measuring, "measure_bundle", stand_in)
    return stand_in


@pytest.mark.usefixtures("without_hardware")
def test_a_bundle_is_measured_reported_and_compared(run: Run, bundle: Path, t5: Path, tmp_path: Path) -> None:
    html, document = tmp_path / "report.html", tmp_path / "report.json"
    result = run("measure", bundle, "--reference", t5, *QUICK, "--html", html, "--json", document)
    found = json.loads(document.read_text())
    assert result.code == 0, result.out
    assert [one["name"] for one in found["subjects"]] == ["torch-dense", "torch-plan", "onnx"]
    assert found["settings"]["prompts"] == 3
    assert found["settings"]["command"].startswith(f"skrr-export measure {bundle} --reference {t5} --sequence 4,9")
    for words in ("Memory, steady", "Latency, median of 2", "Fidelity, 3 prompts", "ONNX Runtime, mapped", "passed"):
        assert words in result.out
    assert "not measured" in result.out  # PSS of one process
    assert html.read_text().startswith("<!doctype html>")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["report.html", "report.json"]

    same = run("compare", document, document, "--tolerance", 0)
    assert same.code == 0
    assert "nothing got worse" in same.out
    found["subjects"][2]["memory"]["stages"]["steady"]["anonymous"] *= 2
    worse = tmp_path / "worse.json"
    worse.write_text(json.dumps(found))
    different = run("compare", document, worse)
    assert different.code == 1
    assert "worse: onnx, anonymous memory: " in different.out
    assert "+100.0%" in different.out
    assert json.loads(run("compare", document, worse, "--json").out)["passed"] is False


def test_options_arrive(run: Run, bundle: Path, measured: Measured, tmp_path: Path) -> None:
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("a\nb\n")
    run(
        "measure", bundle, "--to", "onnx, pt2", "--device", "cuda:1", "--batch", "1,8", "--sequence", "77",
        "--prompts", prompts, "--denoiser", "somewhere", "--threads", 4, "--max-drift", 1e-4, "--max-loss", 0.3,
        "--max-memory", "1.5GiB", "--max-latency-ratio", 1.1, "--time-limit", 5,
        "--reference", "ckpt", "--subfolder", "te",
    )  # fmt: skip
    [options] = measured.options
    assert options.targets == ("onnx", "pt2")
    assert (options.device, options.batches, options.sequences) == ("cuda:1", (1, 8), (77,))
    assert (options.prompts, options.denoiser, options.threads) == (["a", "b"], "somewhere", 4)
    assert (options.reference, options.subfolder, options.time_limit) == ("ckpt", "te", 5)
    limits = options.thresholds
    assert (limits.max_drift, limits.max_loss, limits.max_memory, limits.max_latency_ratio) == (
        1e-4, 0.3, 3 << 29, 1.1,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("text", "size"), [("600MiB", 600 << 20), ("1.5 gb", 1_500_000_000), ("12", 12), ("3k", None), ("-1", None)]
)
def test_sizes_are_read(text: str, size: int | None, run: Run, bundle: Path, measured: Measured) -> None:
    result = run("measure", bundle, f"--max-memory={text}")
    if size is None:
        assert result.code == 2
        assert f"'{text}' is not a size such as 600MiB or 1.5GB" in result.err
    else:
        assert measured.options[0].thresholds.max_memory == size


def test_a_failed_check_is_told_and_exits_1(run: Run, bundle: Path, measured: Measured, tmp_path: Path) -> None:
    result = run("measure", bundle, "--html", tmp_path / "report.html")
    assert result.code == 1
    assert "failed: onnx:prepacked: memory 11,350 MiB exceeds 6,144 MiB" in result.out
    assert "FAILED" in result.out
    assert "Memory saved: 38.5% (onnx 5,912, torch-dense 9,610 MiB resident)" in result.out
    assert (tmp_path / "report.html").exists()  # it says what failed


@pytest.mark.parametrize("kind", ["with_failures", "nothing", "gpu", "without_reference", "hollow"])
def test_what_was_not_measured_is_said_to_be_so(kind: str, run: Run, bundle: Path, measured: Measured) -> None:
    measured.result = getattr(measurements, kind)()
    result = run("measure", bundle)
    assert result.code in (0, 1)
    assert "not measured" in result.out
    for subject in measured.result.subjects:
        assert subject.title in result.out
        assert (subject.error or "") in result.out


def test_json_goes_to_the_screen_without_a_file(run: Run, bundle: Path, measured: Measured) -> None:
    result = run("measure", bundle, "--json")
    assert json.loads(result.out) == json.loads(measured.result.to_json())


def test_quiet_is_quiet(run: Run, bundle: Path, measured: Measured) -> None:
    result = run("measure", bundle, "--quiet")
    assert (result.out, result.err) == ("", "")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--to", "pt2"], "has no target 'pt2'; it has: onnx"),
        (["--to", "tensorrt-rtx"], "has no target 'tensorrt-rtx'"),
        (["--sequence", "a"], "'a' is not a list of whole numbers such as 77,256"),
        (["--sequence", "77,"], "'77,' is not a list of whole numbers"),
        (["--device", "gpu"], "unknown device 'gpu'; choose cpu, cuda, or cuda:N"),
        (["--prompts", "nowhere.txt"], "cannot read the prompts in nowhere.txt"),
        (["--reference", "nowhere"], "nowhere"),
        (["--runs", "0"], "0 is not in the range"),
        (["--time-limit", "0"], "0.0 is not in the range"),
        (["--time-limit", "nan"], "the time limit must be a number of seconds, not nan"),
        (["--html", "/nowhere/report.html"], "cannot write /nowhere/report.html: No such file or directory"),
        (["--json", "/nowhere/report.json"], "cannot write /nowhere/report.json: No such file or directory"),
    ],
)
def test_bad_input_is_one_line_before_anything_takes_long(
    arguments: list[str], message: str, run: Run, bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(measuring, "measure_hardware", lambda *_: pytest.fail("it was begun"))
    result = run("measure", bundle, *arguments)
    assert result.code == 2
    assert result.err.startswith("error: ")
    assert result.err.count("\n") == 1
    assert message in result.err


def test_no_prompts_and_no_bundle(run: Run, bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "empty.txt").write_text("")
    result = run("measure", bundle, "--prompts", tmp_path / "empty.txt")
    assert (result.code, result.err) == (2, f"error: {tmp_path / 'empty.txt'} holds no prompts\n")
    result = run("measure", tmp_path)
    assert result.code == 2
    assert "is not a bundle" in result.err


def test_measurements_that_cannot_be_compared(run: Run, tmp_path: Path) -> None:
    file = tmp_path / "a.json"
    file.write_text("{}")
    for arguments in ([file, file], [file, tmp_path / "b.json"], [file, file, "--tolerance", "-1"]):
        result = run("compare", *arguments)
        assert result.code == 2
        assert result.err.count("\n") == 1


def test_pooled_vectors_have_a_table_where_there_are_any(measured: Measured, run: Run, bundle: Path) -> None:
    whole, pooled = measured.result, measurements.deviation(3e-3, tokens=80)
    assert "pooled vectors" not in run("measure", bundle).out
    for parts, titles in (
        ({"pooled": pooled}, ["Fidelity, 7 prompts", "Fidelity of pooled vectors, 7 prompts"]),
        ({"pooled": pooled, "tokens": None, "padding": None}, ["Fidelity of pooled vectors, 7 prompts"]),
    ):
        subjects = (
            replace(one, drift=one.drift and replace(one.drift, **parts), loss=one.loss and replace(one.loss, **parts))
            for one in whole.subjects
        )
        measured.result = replace(whole, subjects=tuple(subjects))
        text = run("measure", bundle).out
        assert [
            line.partition(" prompts")[0] + " prompts" for line in text.splitlines() if "Fidelity" in line
        ] == titles
        assert "0.003" in text
        assert "Drift, worst target: 0.00300 (relative L2 of pooled vectors, onnx in fp32)" in text


def test_an_interrupted_measurement_leaves_nothing(bundle: Path, tmp_path: Path) -> None:
    report = tmp_path / "report.html"
    report.write_text("old")
    command = [sys.executable, "-m", "skrr_export", "measure", bundle, *QUICK, "--html", report, "--runs", "1000"]
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    process = subprocess.Popen([*map(str, command)], stderr=subprocess.PIPE, env=environment, text=True)
    assert process.stderr is not None
    for line in process.stderr:
        if "memory" in line:  # the first subject is being measured
            break
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    assert children
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 130
    assert errors.splitlines()[-1] == "interrupted"
    assert report.read_text() == "old"
    # ONNX Runtime, if it got as far, leaves a file of its own.
    assert {path.name for path in tmp_path.iterdir()} - {".ses"} == {"report.html"}
    assert not any(Path(f"/proc/{child}").exists() for child in children)
