"""Two measurements side by side: what got worse, by how much, and whether by more than a tolerance."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from skrr_export.errors import InputError
from skrr_export.measure.subjects import DENSE, PLANNED

SCHEMA = "measurement.schema.json"
FLOORS = {"bytes": float(4 << 20), "seconds": 0.1, "times": 0.02, "error": 1e-6}
"""By unit, a change that is noise whatever the tolerance: pages of a heap, scheduling, rounding in fp32."""
_MACHINE = ("cpu", "cores", "gpu")


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """One number in both; less is better."""

    subject: str
    metric: str
    unit: str
    """A key of `FLOORS`."""
    before: float | None
    after: float | None
    regressed: bool

    @property
    def share(self) -> float | None:
        """The change as a share of what it was before."""
        if self.before is None or self.after is None or self.before == 0:
            return None
        return self.after / self.before - 1


@dataclass(frozen=True, slots=True, kw_only=True)
class ComparisonReport:
    """All numbers that at least one of the two has."""

    tolerance: float
    changes: tuple[Change, ...]
    notes: tuple[str, ...]

    @property
    def passed(self) -> bool:
        """Whether nothing regressed."""
        return not any(change.regressed for change in self.changes)

    def to_dict(self) -> dict[str, Any]:
        """For the JSON report."""
        changes = [{**asdict(change), "share": change.share} for change in self.changes]
        return {
            "passed": self.passed,
            "tolerance": self.tolerance,
            "changes": changes,
            "notes": list(self.notes),
        }


def read_measurement(path: Path) -> dict[str, Any]:
    """Read what `measure --json` wrote.

    Raises:
        InputError: it cannot be read, or is no measurement of this version.
    """
    import jsonschema

    schema = json.loads(resources.files("skrr_export").joinpath("data", SCHEMA).read_text(encoding="utf-8"))
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        jsonschema.validate(document, schema)
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} is not JSON: {error}") from error
    except jsonschema.ValidationError as error:
        raise InputError(f"{path} is not a measurement of this version: {error.json_path}: {error.message}") from error
    assert isinstance(document, dict)
    return document


def compare(before: Mapping[str, Any], after: Mapping[str, Any], tolerance: float) -> ComparisonReport:
    """Compare two measurements.

    A number regressed if it grew by more than the tolerance and by more than noise, or was measured before and is not
    any more. Times are compared as ratios to PyTorch of the same run where both have them, so that another machine, or
    a busy one, is no regression; the rest of what decides them (threads, sizes, prompts) is the same command's.

    Args:
        before: a document of `read_measurement`.
        after: likewise.
        tolerance: share by which a number may grow.

    Raises:
        InputError: the tolerance is no share.
    """
    if not 0 <= tolerance < math.inf:
        raise InputError(f"the tolerance must be a number from 0 on, not {tolerance}")
    base = _base(before, after)
    old, new = dict(_metrics(before, base)), dict(_metrics(after, base))
    changes = [_change(key, old.get(key), new.get(key), tolerance) for key in {**old, **new}]
    return ComparisonReport(tolerance=tolerance, changes=tuple(changes), notes=tuple(_notes(before, after)))


Key = tuple[str, str, str]
"""Subject, metric and unit."""


def _metrics(document: Mapping[str, Any], base: str | None) -> Iterator[tuple[Key, float]]:
    """Every number of a measurement that can be compared; those that were not measured are left out."""
    for subject in document["subjects"]:
        for metric, unit, value in _subject_metrics(subject, base):
            if value is not None:
                yield (subject["name"], metric, unit), value


def _subject_metrics(subject: Mapping[str, Any], base: str | None) -> Iterator[tuple[str, str, float | None]]:
    memory = subject["memory"] or {"stages": {}, "total_proportional": None, "gpu": None}
    steady = memory["stages"].get("steady") or {}
    yield "anonymous memory", "bytes", steady.get("anonymous")
    yield "peak RSS", "bytes", steady.get("peak_rss")
    yield "PSS of all processes", "bytes", memory["total_proportional"]
    yield "GPU memory", "bytes", (memory["gpu"] or {}).get("process")
    yield "cold start", "seconds", (subject["cold_start"] or {}).get("total")
    for latency in subject["latencies"]:
        size = f"latency {latency['batch']} x {latency['sequence']}"
        if base is None:
            yield size, "seconds", latency["median"]
        elif base in latency["ratios"]:
            yield f"{size}, times {base}'s", "times", latency["ratios"][base]["median"]
    for name in ("drift", "loss"):
        agreement = subject[name] or {}
        for part, metric in (("tokens", name), ("pooled", f"{name}, pooled")):
            yield metric, "error", (agreement.get(part) or {}).get("relative_l2")


def _base(before: Mapping[str, Any], after: Mapping[str, Any]) -> str | None:
    """The PyTorch subject that both timed, the dense one rather."""
    timed = [{one["name"] for one in document["subjects"] if one["latencies"]} for document in (before, after)]
    return next((name for name in (DENSE, PLANNED) if all(name in names for names in timed)), None)


def _change(key: Key, before: float | None, after: float | None, tolerance: float) -> Change:
    subject, metric, unit = key
    regressed = _regressed(before, after, unit, tolerance)
    return Change(subject=subject, metric=metric, unit=unit, before=before, after=after, regressed=regressed)


def _regressed(before: float | None, after: float | None, unit: str, tolerance: float) -> bool:
    if before is None:
        return False
    if after is None:
        return True
    return after > before * (1 + tolerance) and after - before > FLOORS[unit]


def _notes(before: Mapping[str, Any], after: Mapping[str, Any]) -> Iterator[str]:
    for what in _MACHINE:
        if before["machine"].get(what) != after["machine"].get(what):
            yield f"another machine: {what} was {before['machine'].get(what)}, is {after['machine'].get(what)}"
    for what in ("device", "threads", "prompts", "largest", "processes"):
        if before["settings"][what] != after["settings"][what]:
            yield f"measured otherwise: {what} was {before['settings'][what]}, is {after['settings'][what]}"
    for what in ("family", "num_layers", "dtype", "pipeline"):
        if before["bundle"][what] != after["bundle"][what]:
            yield f"another bundle: {what} was {before['bundle'][what]}, is {after['bundle'][what]}"
    if before["bundle"]["plan"].get("layers") != after["bundle"]["plan"].get("layers"):
        yield "another plan"
