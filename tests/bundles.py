"""Bundles for tests: random plans, quick exports, and files changed behind the manifest's back."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from skrr_export.bundle import Bundle
from skrr_export.checkpoint import open_checkpoint
from skrr_export.encoders import recognise
from skrr_export.exporting import ExportOptions, export_checkpoint
from skrr_export.pipelines import PRESETS, Preset
from skrr_export.plan import Plan
from skrr_export.targets.onnx.session import OnnxSession
from tests import reference
from tests.reference import Sources

T5_PRESETS = {key: preset for key, preset in PRESETS.items() if preset.families in (None, ("t5",))}
"""Presets that a T5's manifest can have."""

UNMASKED = Preset(name="unmasked", max_length=512, padding="longest", masked=False, reads_padding=True)
"""A pipeline without a mask for any family; the built-in ones are T5's."""


def export(
    checkpoint: Path,
    output: Path,
    sources: Sources | None = None,
    *,
    masked: bool = True,
    preset: Preset | None = None,
    **options: Any,
) -> Bundle:
    """Export a checkpoint under a plan, for a pipeline that need not be one of the built-in ones."""
    if sources is not None:
        options["plan"] = Plan(recognise(open_checkpoint(checkpoint)).family, tuple(sources))
    if preset is None and not masked:
        preset = UNMASKED
    with pytest.MonkeyPatch.context() as patch:
        if preset is not None:
            patch.setitem(PRESETS, preset.name, preset)  # type: ignore[arg-type]
            options.setdefault("pipeline", preset.name)
        return export_checkpoint(checkpoint, output, ExportOptions(replace=True, **options)).bundle


def soften(checkpoint: Path) -> Path:
    """Make a T5 checkpoint's attention as soft as a trained one's, and so its output well conditioned; in place.

    T5 does not scale its logits. With weights of 0.3 they reach 30, where the softmax magnifies every rounding: two
    exact implementations then differ by 3e-4, and so do transformers in fp32 and in fp64.
    """
    weights = load_file(checkpoint / "model.safetensors")
    softened = {name: value * 0.1 if name.endswith(".q.weight") else value for name, value in weights.items()}
    save_file(softened, checkpoint / "model.safetensors", metadata={"format": "pt"})
    return checkpoint


RESIDUAL, INNER = 30_000.0, 3_000.0
"""How many times as large the overflowing encoder's residual stream and gated product are; no powers of two."""


def overflowing(checkpoint: Path) -> Path:
    """Make a T5 that computes the same in fp32, but for the epsilon of its norms, on far larger activations."""
    weights = load_file(checkpoint / "model.safetensors")
    factors = {"shared.weight": RESIDUAL, ".o.weight": RESIDUAL, ".wo.weight": RESIDUAL / INNER}
    factors |= dict.fromkeys((".wi_1.weight", ".wi.weight"), INNER)
    for name in weights:
        weights[name] *= next((factor for end, factor in factors.items() if name.endswith(end)), 1.0)
    save_file(weights, checkpoint / "model.safetensors", metadata={"format": "pt"})
    return checkpoint


@st.composite
def plans(draw: st.DrawFn, layers: int) -> Sources:
    """Plans whose positions keep, skip, or re-use any kept layer, before or after; of each kind at least one is kept.

    Plans that keep none of a kind are traced anew, which is slow; `SPECIAL_PLANS` has them.
    """
    columns = []
    for _ in range(2):
        kept = draw(st.sets(st.integers(0, layers - 1), min_size=1))
        other = st.one_of(st.none(), st.sampled_from(sorted(kept)))
        columns.append([layer if layer in kept else draw(other) for layer in range(layers)])
    return list(zip(*columns, strict=True))


PLAN: Sources = [(0, 0), (0, None), (2, 3), (None, 3)]
"""Of four layers: keeps, skips, and re-uses an attention after its source and a feed-forward before it."""

SPECIAL_PLANS: dict[str, Sources] = {
    "first attention skipped": [(None, 0), (1, 1), (2, 2)],
    "first attention re-used from elsewhere": [(2, 0), (1, 1), (2, 2)],
    "every attention skipped": [(None, 0), (None, 1), (None, 2)],
    "every feed-forward skipped": [(0, None), (1, None), (2, None)],
    "one source at many positions": [(1, 2), (1, 2), (1, 2)],
    "everything skipped": [(None, None), (None, None), (None, None)],
    "one layer, skipped": [(None, None)],
}
SPECIAL_CASES = [
    pytest.param(plan, masked, id=f"{name}, {'masked' if masked else 'unmasked'}")
    for name, plan in SPECIAL_PLANS.items()
    for masked in (True, False)
    if masked or not name.startswith("every ")  # those two take a trace of their own
]
"""Special plans, on masked and on unmasked graphs."""


def examples(count: int) -> settings:
    """Settings of a slow property: so many examples, or those of the profile `explore`."""
    return settings(max_examples=count) if settings.default.derandomize else settings()


def error_against_transformers(
    checkpoint: Path, directory: Path, sources: Sources | None, input_ids: np.ndarray, mask: np.ndarray | None
) -> float:
    """Export a checkpoint to `directory / "bundle"`, run it, and compare; the error of the worst row."""
    session = OnnxSession(export(checkpoint, directory / "bundle", sources, masked=mask is not None))
    ours = session.encode(input_ids, mask)["last_hidden_state"]
    return relative_error(ours, reference.encode(checkpoint, sources, input_ids, mask))


def random_ids(random: np.random.Generator, batch: int, sequence: int, vocab_size: int = 307) -> np.ndarray:
    """Token ids."""
    return random.integers(0, vocab_size, (batch, sequence))


def random_mask(random: np.random.Generator, batch: int, sequence: int) -> np.ndarray:
    """A mask of which row 0 is padded on the right, the others are masked anywhere; no row wholly."""
    mask = random.integers(0, 2, (batch, sequence))
    mask[0] = np.arange(sequence) < random.integers(1, sequence + 1)
    mask[np.arange(batch), random.integers(0, sequence, batch)] = 1
    return mask


def relative_error(ours: np.ndarray, truth: np.ndarray) -> float:
    """Norm of the difference over the norm of the truth, of the worst row."""
    assert ours.shape == truth.shape
    assert np.isfinite(ours).all()
    difference = np.linalg.norm(ours.astype(np.float64) - truth, axis=-1)
    return float((difference / np.linalg.norm(truth.astype(np.float64), axis=-1)).max())


def forge_hashes(bundle: Bundle) -> None:
    """Write the hashes of the files as they are now into the manifest, so that nothing seems changed."""
    path = bundle.directory / "manifest.json"
    manifest = json.loads(path.read_text())
    for name, entry in manifest["files"].items():
        content = (bundle.directory / name).read_bytes()
        entry.update(sha256=hashlib.sha256(content).hexdigest(), bytes=len(content))
    path.write_text(json.dumps(manifest))


def edit_graph(bundle: Bundle, edit: Callable[[dict[str, onnx.NodeProto], onnx.GraphProto], None]) -> None:
    """Change the ONNX graph, whose nodes are also given by name, and forge the hashes."""
    model = onnx.load(bundle.directory / "model.onnx", load_external_data=False)
    edit({node.name: node for node in model.graph.node}, model.graph)
    onnx.save(model, bundle.directory / "model.onnx")
    forge_hashes(bundle)


def edit_weight(bundle: Bundle, name: str, edit: Callable[[np.ndarray], None]) -> None:
    """Change an fp32 tensor, flat, and forge the hashes."""
    tensor = bundle.tensors()[name]
    with bundle.weights.open("r+b") as file:
        file.seek(tensor.offset)
        values = np.frombuffer(file.read(tensor.nbytes), np.float32).copy()
        edit(values)
        file.seek(tensor.offset)
        file.write(values.tobytes())
    forge_hashes(bundle)


def scale(factor: float) -> Callable[[np.ndarray], None]:
    """An edit of a weight."""

    def edit(values: np.ndarray) -> None:
        values *= np.float32(factor)

    return edit


def swap_source(nodes: dict[str, onnx.NodeProto], graph: onnx.GraphProto) -> None:
    """An edit of a graph: layer 1 runs the attention of layer 2."""
    for index, name in enumerate(nodes["layers.1.attention"].input):
        nodes["layers.1.attention"].input[index] = name.replace("block.0.layer.0.", "block.2.layer.0.")


def run_python(code: str, *arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run code in a fresh interpreter; its arguments are in `sys.argv[1:]`."""
    command = [sys.executable, "-c", code, *map(str, arguments)]
    result = subprocess.run(command, capture_output=True, text=True, check=False, env={**os.environ, **environment})
    assert result.returncode == 0, result.stderr
    return result
