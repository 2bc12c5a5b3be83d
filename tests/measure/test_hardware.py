from __future__ import annotations

from itertools import count

import pytest

from skrr_export.measure import hardware
from skrr_export.measure.hardware import fastest, measure_hardware
from skrr_export.measure.process import Surroundings
from skrr_export.measure.record import Hardware


def test_the_machine_is_measured() -> None:
    found = measure_hardware("cpu", ["fp32", "bf16", "fp32"], Surroundings(threads=1, time_limit=120))
    assert found.copy_bytes_per_second is not None
    assert 1e8 < found.copy_bytes_per_second < 1e13
    assert found.matmul_flops_per_second.keys() == {"fp32", "bf16"}
    assert all(1e8 < flops < 1e15 for flops in found.matmul_flops_per_second.values())


@pytest.mark.parametrize(("seconds", "calls"), [(0.5, 5), (100, 2), (0.001, 8)])
def test_slow_calls_are_made_less_often(monkeypatch: pytest.MonkeyPatch, seconds: float, calls: int) -> None:
    """A product in half precision takes seconds on a processor that has no instructions for it."""
    clock, made = count(), []
    monkeypatch.setattr(hardware.time, "perf_counter", lambda: next(clock) * seconds)
    assert hardware._best(lambda: made.append(0), lambda: None) == pytest.approx(seconds)
    assert len(made) == calls


def test_the_copy_is_larger_than_any_cache() -> None:
    assert 2 * hardware.COPY_BYTES["cpu"] >= 512 << 20


def test_what_cannot_be_measured_is_none() -> None:
    for device, limit in (("cuda", 120.0), ("cpu", 0.01)):
        found = measure_hardware(device, ["fp32"], Surroundings(threads=1, time_limit=limit, gpu=""))
        assert found.copy_bytes_per_second is None
        assert found.matmul_flops_per_second == {}


def test_of_two_measurements_the_better_counts() -> None:
    first = Hardware(copy_bytes_per_second=None, matmul_flops_per_second={"fp32": 1.0, "bf16": 5.0})
    second = Hardware(copy_bytes_per_second=3.0, matmul_flops_per_second={"fp32": 2.0})
    both = Hardware(copy_bytes_per_second=3.0, matmul_flops_per_second={"fp32": 2.0, "bf16": 5.0})
    assert fastest(first, second) == fastest(second, first) == both
    nothing = Hardware(copy_bytes_per_second=None, matmul_flops_per_second={})
    assert fastest(nothing, nothing) == nothing
