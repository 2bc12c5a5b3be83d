"""Scenes for tests: of every kind, by seed."""

from __future__ import annotations

from random import Random
from typing import get_args

from hypothesis import strategies as st

from skrr_export.demo.world import Kind, Scene, draw_scene

KINDS: tuple[Kind, ...] = get_args(Kind)
SEEDS = st.integers(0, 2**32)
SCENES = st.builds(lambda kind, seed: draw_scene(kind, Random(seed)), st.sampled_from(KINDS), SEEDS)


def scenes(count: int, seed: int = 0) -> list[Scene]:
    """Scenes of all kinds in turn."""
    random = Random(seed)
    return [draw_scene(KINDS[index % len(KINDS)], random) for index in range(count)]
