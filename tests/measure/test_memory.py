from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from skrr_export.measure.memory import PeakSampler, available, memory_of

MIB = 1 << 20

HOLD = """
import mmap, sys
held = bytearray(int(sys.argv[1]) << 20)
with open(sys.argv[2], "rb") as file:
    mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
sum(mapped[::mmap.PAGESIZE])
print("ready", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "mapped"
    path.write_bytes(os.urandom(MIB) * 100)
    return path


def hold(mib: int, file: Path, *prefix: str) -> subprocess.Popen[str]:
    """A process that holds so much, and maps a file, until its input is closed."""
    command = [*prefix, sys.executable, "-c", HOLD, str(mib), str(file)]
    process = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


def test_it_counts_what_a_process_allocates_and_what_it_maps_apart(file: Path) -> None:
    with hold(0, file) as small, hold(300, file) as large:
        before, after = memory_of(small.pid), memory_of(large.pid)
    assert after.anonymous - before.anonymous == pytest.approx(300 * MIB, rel=0.02)
    assert after.file_backed == pytest.approx(before.file_backed, rel=0.03)
    assert after.file_backed > 100 * MIB
    assert after.swap == after.shared == 0


def test_it_agrees_with_the_sums_over_all_mappings(file: Path) -> None:
    with hold(200, file) as process:
        ours = memory_of(process.pid)
        lines = re.findall(r"^(\w+): +(\d+) kB$", Path(f"/proc/{process.pid}/smaps").read_text(), re.MULTILINE)
    sums = dict.fromkeys(("Rss", "Pss", "Anonymous"), 0)
    for name, kib in lines:
        if name in sums:
            sums[name] += 1024 * int(kib)
    assert ours.anonymous == pytest.approx(sums["Anonymous"], rel=0.03)
    assert ours.proportional == pytest.approx(sums["Pss"], rel=0.03)
    assert ours.anonymous + ours.file_backed + ours.shared == pytest.approx(sums["Rss"], rel=0.03)


def test_the_peak_agrees_with_what_time_reports(file: Path) -> None:
    if shutil.which("/usr/bin/time") is None:
        pytest.skip("no /usr/bin/time here")
    with hold(250, file, "/usr/bin/time", "-v") as process:
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        ours = memory_of(int(children[0]))
        _, report = process.communicate()
    found = re.search(r"Maximum resident set size \(kbytes\): (\d+)", report)
    assert found is not None
    assert ours.peak_rss == pytest.approx(1024 * int(found[1]), rel=0.03)


def test_two_processes_share_what_they_map(file: Path) -> None:
    with hold(0, file) as first, hold(0, file) as second:
        both = memory_of(first.pid), memory_of(second.pid)
    assert all(one.proportional < one.file_backed + one.anonymous - 40 * MIB for one in both)


def test_a_process_that_has_ended_has_no_memory(file: Path) -> None:
    with pytest.raises(ProcessLookupError):
        memory_of(2**22 + 1)
    with subprocess.Popen(["true"]) as process:
        while Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z":
            time.sleep(0.01)
        with pytest.raises(ProcessLookupError):
            memory_of(process.pid)


def test_the_sampler_sees_a_peak_that_is_over() -> None:
    code = "import time; a = bytearray(200 << 20); time.sleep(1); del a; print(flush=True); input()"
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        with PeakSampler(process.pid) as sampler:
            process.stdout.readline()
        assert memory_of(process.pid).anonymous < 100 * MIB
        process.communicate(b"\n")
    assert sampler.peak is not None
    assert sampler.peak > 200 * MIB


def test_some_memory_is_available() -> None:
    room = available()
    assert room is not None
    assert 0 < room <= os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
