"""The table of what presets save covers every preset, and its numbers are those of a bundle."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from skrr_export.pipelines import PRESETS

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture(autouse=True)
def importable(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Scripts import each other by their plain names."""
    monkeypatch.syspath_prepend(BENCHMARKS)
    yield
    for name in ("savings", "published", "report", "environments"):
        sys.modules.pop(name, None)


def test_every_preset_is_weighed_and_weighs_no_more_than_its_whole_encoder() -> None:
    import savings

    records = {(record["pipeline"], record["slot"]): record for record in savings.measure(0.4)}
    assert records.keys() == {(preset.name, preset.encoder) for preset in PRESETS.values() if preset.encoder}
    for record in records.values():
        assert record["planned"] <= 0.6 * record["dense"]
        assert record["planned"] < record["read"] <= record["dense"]
        assert (record["read"] == record["dense"]) is (record["depth"] == record["layers"])
    assert records["flux.1", "text_encoder_2"]["dense"] == 9_524_621_312  # of a T5-XXL in bf16, as its index says
    assert records["flux.2", "text_encoder"]["depth"] == 30
