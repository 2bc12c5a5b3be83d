from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from skrr_export.measure.harness import Draft, Harness, Size, record
from skrr_export.measure.latency import ratio
from skrr_export.measure.process import Surroundings, Worker
from skrr_export.measure.record import Hardware, SubjectRecord
from skrr_export.measure.subjects import Subject
from skrr_export.measure.worker import Opener
from tests.measure import controls
from tests.measure.controls import MIB

SIZES = [Size(2, 16), Size(1, 4)]
NO_HARDWARE = Hardware(copy_bytes_per_second=None, matmul_flops_per_second={})


def harness(time_limit: float = 30) -> Harness:
    surroundings = Surroundings(threads=1, time_limit=time_limit)
    return Harness(surroundings, SIZES, vocab_size=50, masked=False)


def draft(opener: Opener, name: str = "control", role: Any = "target") -> Draft:
    return Draft(subject=Subject(name=name, title=name, role=role, planned=True, opener=opener))


def alone(opener: Opener, **options: Any) -> SubjectRecord:
    found = draft(opener)
    harness().alone(found, **options)
    processes = options.get("processes", 1)
    return record(found, NO_HARDWARE, masked=False, processes=processes, pytorch=())


@pytest.fixture(scope="module")
def nothing() -> SubjectRecord:
    return alone(Opener.of(controls.allocating), processes=2)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "weights"
    path.write_bytes(os.urandom(MIB) * 64)
    return path


def anonymous(subject: SubjectRecord, stage: str = "steady") -> int:
    assert subject.memory is not None
    return subject.memory.stages[stage].anonymous


def test_what_a_subject_allocates_is_seen_where_it_allocates_it(nothing: SubjectRecord) -> None:
    large = alone(Opener.of(controls.allocating, mib=500))
    assert large.error is None
    assert anonymous(large) - anonymous(nothing) == pytest.approx(500 * MIB, rel=0.02)
    assert anonymous(large, "import") == pytest.approx(anonymous(nothing, "import"), abs=4 * MIB)
    assert anonymous(large, "load") - anonymous(large, "import") == pytest.approx(500 * MIB, rel=0.02)
    assert large.memory is not None
    assert large.memory.peak_anonymous == pytest.approx(anonymous(large), rel=0.03)
    assert large.memory.stages["steady"].peak_rss >= anonymous(large)


def test_two_runs_of_one_subject_agree(nothing: SubjectRecord) -> None:
    again = alone(Opener.of(controls.allocating), processes=2)
    for subject in (nothing, again):
        assert subject.memory is not None
    assert anonymous(again) == pytest.approx(anonymous(nothing), rel=0.05)
    assert again.memory.stages["steady"].peak_rss == pytest.approx(nothing.memory.stages["steady"].peak_rss, rel=0.05)  # type: ignore[union-attr]
    assert again.memory.total_proportional == pytest.approx(nothing.memory.total_proportional, rel=0.05)  # type: ignore[union-attr]


def test_mapped_weights_are_shared_and_a_leaked_copy_is_not(nothing: SubjectRecord, file: Path) -> None:
    mapped = alone(Opener.of(controls.mapping, file=file), processes=2)
    leaked = alone(Opener.of(controls.mapping, file=file, copies=1), processes=2)
    assert nothing.memory is not None
    assert mapped.memory is not None
    assert leaked.memory is not None
    assert anonymous(mapped) == pytest.approx(anonymous(nothing), abs=4 * MIB)
    assert anonymous(leaked) - anonymous(mapped) == pytest.approx(64 * MIB, rel=0.05)
    gained = mapped.memory.stages["steady"].file_backed - nothing.memory.stages["steady"].file_backed
    assert gained == pytest.approx(64 * MIB, rel=0.05)
    totals = [subject.memory.total_proportional or 0 for subject in (nothing, mapped, leaked)]  # type: ignore[union-attr]
    assert totals[1] - totals[0] == pytest.approx(64 * MIB, rel=0.15)  # once for two processes
    assert totals[2] - totals[1] == pytest.approx(128 * MIB, rel=0.15)  # twice


def test_memory_that_is_held_for_a_moment_is_a_peak() -> None:
    subject = alone(Opener.of(controls.brief, mib=200, seconds=1))
    assert subject.memory is not None
    assert anonymous(subject) < 100 * MIB
    assert (subject.memory.peak_anonymous or 0) > 200 * MIB
    assert subject.memory.stages["import"].peak_rss < 200 * MIB < subject.memory.stages["load"].peak_rss


def test_a_cold_start_is_the_sum_of_its_parts(nothing: SubjectRecord) -> None:
    start = nothing.cold_start
    assert start is not None
    assert start.starts == 2
    assert min(start.interpreter, start.imports, start.load, start.first) > 0
    assert start.total == pytest.approx(start.interpreter + start.imports + start.load + start.first, rel=0.5)


@pytest.mark.parametrize(("after", "stages"), [(0, ["import", "load"]), (2, ["import", "load", "first"])])
def test_what_was_measured_before_a_subject_failed_is_kept(after: int, stages: list[str]) -> None:
    subject = alone(Opener.of(controls.failing, how="exit", after=after))
    assert subject.error == "its process exited with code 3: last words"
    assert subject.memory is not None
    assert list(subject.memory.stages) == stages
    assert subject.memory.total_proportional is None
    assert subject.memory.processes is None
    assert subject.latencies == ()


def test_a_subject_that_does_not_even_start_has_nothing() -> None:
    subject = alone(Opener("no_such_module:open", {}))
    assert subject.error is not None
    assert (subject.memory, subject.cold_start, subject.computes_in) == (None, None, None)


def test_subjects_take_turns_and_one_that_dies_or_hangs_leaves_the_others() -> None:
    drafts = [
        draft(Opener.of(controls.slow, seconds=0.02), "base", "pytorch"),
        draft(Opener.of(controls.failing, how="kill", after=7), "dies"),
        draft(Opener.of(controls.failing, how="hang", after=8), "hangs"),
        draft(Opener.of(controls.slow, seconds=0.06), "slower"),
    ]
    one = harness(time_limit=10)  # which a busy machine also needs to load them
    for each in drafts:
        one.alone(each)
        assert each.error is None
    one.interleaved(drafts, runs=4)
    base, dies, hangs, slower = (
        record(each, NO_HARDWARE, masked=False, processes=1, pytorch=["base"]) for each in drafts
    )
    assert dies.error is not None
    assert "was killed" in dies.error
    assert hangs.error == "no answer within 10 s; stopped"
    assert base.error is slower.error is None
    assert [(one.batch, one.sequence) for one in slower.latencies] == [(1, 4), (2, 16)]
    assert [len(one.seconds) for one in (*base.latencies, *slower.latencies)] == [4, 4, 4, 4]
    assert len(dies.latencies) <= 1
    for latency, other in zip(slower.latencies, base.latencies, strict=True):
        assert latency.ratios == {"base": ratio(latency.seconds, other.seconds)}
        assert 0.06 <= latency.median <= latency.p95
        assert latency.tokens_per_second == pytest.approx(latency.batch * latency.sequence / latency.median)
        assert latency.bound is None
    assert base.latencies[0].ratios == {}


def test_subjects_that_do_not_fit_together_are_timed_in_pairs(monkeypatch: pytest.MonkeyPatch) -> None:
    drafts = [draft(Opener.of(controls.allocating), name, "pytorch") for name in ("a", "b", "c")]
    one = harness()
    for each in drafts:
        one.alone(each)
    monkeypatch.setattr("skrr_export.measure.harness.available", lambda: 1)
    alive: list[int] = []
    start = Worker.__init__

    def count(self: Worker, *arguments: Any) -> None:
        start(self, *arguments)
        alive.append(sum(Path(f"/proc/{pid}").exists() for pid in pids) + 1)
        pids.append(self.pid)

    pids: list[int] = []
    monkeypatch.setattr(Worker, "__init__", count)
    one.interleaved(drafts, runs=2)
    assert alive == [1, 2, 1, 2]
    for each in drafts:
        assert set(each.seconds) == set(SIZES)
        assert any("in turn with the first subject only" in note for note in each.notes)
    assert set(drafts[2].seconds[SIZES[0]]) == {"a", "c"}


def test_processes_that_do_not_fit_are_not_measured_and_said_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("skrr_export.measure.harness.available", lambda: 1)
    subject = alone(Opener.of(controls.allocating), processes=3)
    assert subject.error is None
    assert subject.memory is not None
    assert subject.memory.total_proportional is None
    assert subject.notes == ("3 processes at once were not measured: they would not fit into memory",)


def test_a_second_process_that_fails_fails_only_what_it_is_for(tmp_path: Path) -> None:
    subject = alone(
        Opener.of(controls.only_one, lock=tmp_path / "lock"), processes=2, examine=lambda draft, worker: None
    )
    assert subject.error is None
    assert subject.memory is not None
    assert "steady" in subject.memory.stages
    assert (subject.memory.processes, subject.memory.total_proportional) == (None, None)
    assert subject.notes == ("2 processes at once were not measured: OSError: there is one already",)


def test_a_subject_alone_is_timed_whether_it_fits_or_not(monkeypatch: pytest.MonkeyPatch) -> None:
    one = harness()
    found = draft(Opener.of(controls.allocating))
    one.alone(found)
    monkeypatch.setattr("skrr_export.measure.harness.available", lambda: 1)
    one.interleaved([found], runs=2)
    assert set(found.seconds) == set(SIZES)
    one.interleaved([], runs=2)


def test_the_inputs_are_the_same_for_all_and_within_the_vocabulary() -> None:
    ids, mask = Size(2, 16).inputs(50, masked=True)
    again, none = Size(2, 16).inputs(50, masked=False)
    assert ids.shape == (2, 16)
    assert (ids == again).all()
    assert 0 <= ids.min() <= ids.max() < 50
    assert mask is not None
    assert (mask == 1).all()
    assert none is None
