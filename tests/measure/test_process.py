from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from skrr_export.measure.process import SubjectError, Surroundings, Worker
from skrr_export.measure.worker import Opener
from tests.measure import controls

SURROUNDINGS = Surroundings(threads=1, time_limit=30)
IDS = np.arange(6).reshape(2, 3)


def run(worker: Worker) -> np.ndarray:
    worker.open()
    worker.load()
    output = worker.run(IDS, None, output=True).output
    assert output is not None
    return output["last_hidden_state"]


def test_a_worker_runs_its_subject() -> None:
    with Worker(Opener.of(controls.allocating), SURROUNDINGS) as worker:
        assert worker.start_seconds > 0
        assert np.array_equal(run(worker), controls.embed(IDS)["last_hidden_state"])
        assert worker.run(IDS, None).output is None
        assert worker.run(IDS, None).seconds > 0
        assert worker.computes_in() == "fp32"
        assert worker.notes() == ()
        assert worker.gpu_memory().torch_peak is None
        assert worker.gpu_memory().process is None
    assert not Path(f"/proc/{worker.pid}").exists()


def test_its_time_is_that_of_the_run() -> None:
    with Worker(Opener.of(controls.slow, seconds=0.2), SURROUNDINGS) as worker:
        run(worker)
        begin = time.perf_counter()
        seconds = worker.run(IDS, None).seconds
        assert 0.2 <= seconds <= time.perf_counter() - begin


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("raise", "ValueError: no such luck"),
        ("memory", "out of memory"),
        ("exit", "its process exited with code 3: last words"),
        ("kill", "its process was killed; the system may be out of memory"),
        ("abort", "its process was ended by SIGABRT"),
    ],
)
def test_a_failure_is_told_in_one_line(how: str, message: str) -> None:
    with Worker(Opener.of(controls.failing, how=how), SURROUNDINGS) as worker:
        with pytest.raises(SubjectError) as caught:
            run(worker)
        assert str(caught.value) == message
        if how not in ("raise", "memory"):
            for again in (lambda: worker.run(IDS, None), worker.memory):
                with pytest.raises(SubjectError, match="its process"):
                    again()


def test_a_subject_that_hangs_is_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    with Worker(Opener.of(controls.failing, how="hang"), SURROUNDINGS) as worker:
        worker.open()
        worker.load()
        monkeypatch.setattr(worker, "_time_limit", 1.0)  # only now: a busy machine takes its time to load
        with pytest.raises(SubjectError, match=r"^no answer within 1 s; stopped$"):
            worker.run(IDS, None)
        with pytest.raises(SubjectError, match="its process was killed"):
            worker.run(IDS, None)  # at once: others are being timed
    assert not Path(f"/proc/{worker.pid}").exists()


def test_our_own_errors_are_told_as_they_are() -> None:
    arguments = {"bundle": "/nowhere", "target": "onnx", "mode": "mapped", "device": "cpu", "threads": 1}
    with Worker(Opener("skrr_export.measure.openers:open_session", arguments), SURROUNDINGS) as worker:
        worker.open()
        with pytest.raises(SubjectError, match=r"^/nowhere is not a bundle: cannot read manifest.json"):
            worker.load()


def test_a_library_that_is_missing_is_told() -> None:
    with (
        Worker(Opener("no_such_module:open", {}), SURROUNDINGS) as worker,
        pytest.raises(SubjectError, match="ModuleNotFoundError: No module named 'no_such_module'"),
    ):
        worker.open()


def test_every_library_gets_the_same_number_of_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    environment = Surroundings(threads=3, time_limit=1, gpu="1").environment()
    assert {environment[name] for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")} == {"3"}
    assert environment["CUDA_VISIBLE_DEVICES"] == "1"


def test_no_worker_outlives_a_parent_that_is_killed(tmp_path: Path) -> None:
    code = f"""
import sys, time
sys.path.insert(0, {str(Path.cwd())!r})
from skrr_export.measure.process import Surroundings, Worker
from skrr_export.measure.worker import Opener
from tests.measure import controls
worker = Worker(Opener.of(controls.slow, seconds=60), Surroundings(threads=1, time_limit=100))
print(worker.pid, flush=True)
time.sleep(60)
"""
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        assert Path(f"/proc/{pid}").exists()
        parent.kill()
    for _ in range(1200):  # a minute, for a busy machine
        if not Path(f"/proc/{pid}").exists():
            return
        time.sleep(0.05)
    pytest.fail("it is still there")
