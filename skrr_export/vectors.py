"""Test vectors: ids, mask and expected outputs in a bundle, by which any runtime proves itself without the checkpoint.

What is expected comes from `transformers` in fp32, under the same plan on the checkpoint's weights. The file's layout
and the test are specified in `runtimes/BUNDLE.md`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import safetensors.numpy
from safetensors import SafetensorError, safe_open

from skrr_export.bundle import Bundle
from skrr_export.errors import BundleError
from skrr_export.manifest import Manifest, VectorsEntry
from skrr_export.measure.cases import Case, random_case
from skrr_export.measure.comparison import token_rows
from skrr_export.measure.fidelity import Deviation, DeviationMeter
from skrr_export.measure.limits import LIMITS
from skrr_export.outputs import Output
from skrr_export.pipelines import Preset
from skrr_export.pipelines.cleaning import note
from skrr_export.progress import Progress, silent
from skrr_export.prompts import default_prompts, spread
from skrr_export.targets.base import Ids, Session
from skrr_export.tokenization import Tokenizer

FILE = "vectors.safetensors"

Outputs = Mapping[str, npt.NDArray[np.float32]]
"""By name."""


@dataclass(frozen=True, slots=True, eq=False)
class Vector:
    """A batch, and what the encoder makes of it."""

    case: Case
    expected: Outputs
    """What the reference gives in fp32, before a pipeline makes something of it."""


@dataclass(frozen=True, slots=True)
class SelfTest:
    """How a runtime did."""

    vectors: int
    ids_equal: bool | None
    """Whether the prompts gave the vectors' ids and masks; `None`: not checked, the bundle or the vectors lack them."""
    computes_in: str
    """Precision, which decides the limits."""
    outputs: Mapping[str, Deviation]
    """Of each output by name; of one per token, the rows that the denoiser reads."""
    nonfinite: int
    """Values that are NaN or infinite, in any row."""
    limits: dict[str, float]

    @property
    def passed(self) -> bool:
        """Whether the runtime is right."""
        close = all(
            value is not None and value <= self.limits[measure]
            for distances in self._distances().values()
            for measure, value in distances.items()
        )
        return close and not self.nonfinite and self.ids_equal is not False

    def to_dict(self) -> dict[str, Any]:
        """For `--json`."""
        return {
            "passed": self.passed,
            "vectors": self.vectors,
            "ids_equal": self.ids_equal,
            "computes_in": self.computes_in,
            "outputs": self._distances(),
            "nonfinite": self.nonfinite,
            "limits": self.limits,
        }

    def __str__(self) -> str:
        ids = {None: "not checked", True: "equal", False: "DIFFERENT"}[self.ids_equal]
        worst = ", ".join(map(self._worst, ("relative_l2", "cosine_distance")))
        bad = f", {self.nonfinite} values not finite" if self.nonfinite else ""
        verdict = "passed" if self.passed else "FAILED"
        return f"self-test: {self.vectors} vectors, {worst}{bad}, token ids {ids}: {verdict}"

    def _distances(self) -> dict[str, dict[str, float | None]]:
        return {
            name: {
                "relative_l2": rows.relative_l2,
                "cosine_distance": None if rows.cosine_min is None else max(0.0, 1 - rows.cosine_min),
            }
            for name, rows in self.outputs.items()
        }

    def _worst(self, measure: str) -> str:
        """A distance in words, that of the worst output, which is named where there are several."""
        found = {name: distances[measure] for name, distances in self._distances().items()}
        worst, name = max((math.inf if value is None else value, name) for name, value in found.items())
        of = f" of {name}" if len(found) > 1 else ""
        value = f"{worst:.2g}" if worst < math.inf else "not finite"
        title = measure.replace("_l2", " L2").replace("_", " ")
        return f"{title}{of} {value} (limit {self.limits[measure]:.2g})"


def choose_cases(
    manifest: Manifest, tokenizer: Tokenizer | None, count: int, *, ending: int | None = None
) -> Iterator[Case]:
    """The batches of a bundle's vectors: the null prompt and others, or random ids where there is no tokenizer.

    Prompts are such that cleaning leaves them as they are, so that who does not clean finds the same ids.

    Args:
        manifest: of the bundle.
        tokenizer: of the bundle, if it has one.
        count: how many batches.
        ending: the id that ends a prompt, where the encoder looks for it.
    """
    if tokenizer is None:
        yield from _random_cases(manifest, np.random.default_rng(0), count, ending)
        return
    prompts = spread(["", *filter(None, _cleaned(tokenizer.preset, default_prompts()))], count)
    for number in range(len(prompts)):
        batch = tuple(prompts[(number + row) % len(prompts)] for row in range(manifest.batch or 1))
        tokens = tokenizer(batch)
        told = () if note(tokenizer.preset.clean) else batch  # who has the libraries for it would clean them
        yield Case(str(number), tokens.input_ids, tokens.attention_mask, told)


def _cleaned(preset: Preset, prompts: Sequence[str]) -> Sequence[str]:
    """Prompts as they are once they were cleaned; those that cleaning would change again are left out."""
    if preset.clean is None:
        return prompts
    clean = replace(preset, removed=(), prefix="", suffix="").prepare
    cleaned = map(clean, prompts)
    return [prompt for prompt in dict.fromkeys(cleaned) if prompt == clean(prompt)]


def _random_cases(manifest: Manifest, random: np.random.Generator, count: int, ending: int | None) -> Iterator[Case]:
    longest = min(manifest.pipeline.max_length, manifest.max_length or manifest.pipeline.max_length)
    left = manifest.pipeline.padding_side == "left"
    for number in range(count):
        shape = (manifest.batch or 2, manifest.sequence or int(random.integers(1, longest + 1)))
        lengths = random.integers(1, shape[1] + 1, shape[0])
        yield random_case(str(number), shape, lengths, manifest.vocab_size, random, left=left, ending=ending)


def make(
    manifest: Manifest, cases: Sequence[Case], encode: Callable[[Ids, Ids | None], Outputs]
) -> tuple[VectorsEntry, bytes]:
    """The vectors' file, and what the manifest says of it.

    Args:
        manifest: of the bundle they are for.
        cases: the batches.
        encode: the reference; gives the manifest's outputs.
    """
    tensors: dict[str, npt.NDArray[Any]] = {}
    for number, case in enumerate(cases):
        tensors[f"{number}.input_ids"] = case.input_ids
        tensors[f"{number}.attention_mask"] = case.attention_mask
        outputs = encode(case.input_ids, case.given(manifest.pipeline))
        tensors |= {f"{number}.{name}": np.ascontiguousarray(value) for name, value in outputs.items()}
    limits = {precision: asdict(limit) for precision, limit in LIMITS.items()}
    prompts = json.dumps([list(case.prompts) or None for case in cases])
    content = safetensors.numpy.save(tensors, metadata={"prompts": prompts})  # one key: the library shuffles several
    return VectorsEntry(file=FILE, count=len(cases), limits=limits), content


def read(bundle: Bundle) -> list[Vector]:
    """The vectors that a bundle carries.

    Raises:
        BundleError: it carries none, or damaged ones.
    """
    entry = bundle.manifest.vectors
    if entry is None:
        raise BundleError(f"{bundle.directory} carries no test vectors; export again with --vectors 8")
    path = bundle.directory / entry.file
    try:
        with safe_open(path, framework="np") as file:
            prompts = json.loads(file.metadata()["prompts"])
            return [_read(file, bundle.manifest, number, prompts[number]) for number in range(entry.count)]
    except (SafetensorError, OSError, KeyError, ValueError, TypeError, IndexError) as error:
        raise BundleError(f"{path}: malformed test vectors: {error}") from error


def _read(file: Any, manifest: Manifest, number: int, prompts: Any) -> Vector:
    ids, mask = (file.get_tensor(f"{number}.{name}") for name in ("input_ids", "attention_mask"))
    if ids.ndim != 2 or 0 in ids.shape or ids.shape != mask.shape:
        raise ValueError(f"vector {number} has ids {ids.shape} and mask {mask.shape}")
    expected = {}
    sizes = dict(zip(("batch", "sequence"), ids.shape, strict=True))
    for entry in manifest.outputs:
        value, name = file.get_tensor(f"{number}.{entry.output.name}"), entry.output.name
        if value.shape != (shape := tuple(sizes.get(str(size), size) for size in entry.shape)):
            raise ValueError(f"vector {number} has {name} {value.shape}, not {shape}")
        expected[name] = value
    if prompts is not None and not (
        isinstance(prompts, list) and len(prompts) == len(ids) and all(type(prompt) is str for prompt in prompts)
    ):
        raise ValueError(f"vector {number} has the prompts {prompts!r} for {len(ids)} rows")
    return Vector(Case(str(number), ids, mask, tuple(prompts or ())), expected)


def self_test(session: Session, progress: Progress = silent) -> SelfTest:
    """Run a session on its bundle's vectors.

    Raises:
        BundleError: the bundle carries none, or damaged ones.
    """
    bundle = session.bundle
    vectors = read(bundle)
    tokenizer = Tokenizer.of_bundle(bundle) if bundle.carries_tokenizer else None
    preset = bundle.manifest.pipeline
    meters = {entry.output.name: DeviationMeter() for entry in bundle.manifest.outputs}
    nonfinite, equal = 0, []
    for done, vector in enumerate(vectors):
        progress("testing", done, len(vectors))
        case = vector.case
        if tokenizer is not None and case.prompts:
            tokens = tokenizer(case.prompts)
            same = (tokens.input_ids, case.input_ids), (tokens.attention_mask, case.attention_mask)
            equal.append(all(np.array_equal(ours, theirs) for ours, theirs in same))
        outputs = session.encode(case.input_ids, case.given(preset))
        nonfinite += sum(int((~np.isfinite(value)).sum()) for value in outputs.values())
        for entry in bundle.manifest.outputs:
            ours, expected = (_rows(entry.output, case, preset, each) for each in (outputs, vector.expected))
            meters[entry.output.name].add(ours.astype(np.float32), expected)
    assert bundle.manifest.vectors is not None
    return SelfTest(
        vectors=len(vectors),
        ids_equal=all(equal) if equal else None,
        computes_in=session.computes_in.name,
        outputs={name: meter.result() for name, meter in meters.items()},
        nonfinite=nonfinite,
        limits=dict(bundle.manifest.vectors.limits[session.computes_in.name]),
    )


def _rows(output: Output, case: Case, preset: Preset, outputs: Mapping[str, npt.NDArray[Any]]) -> npt.NDArray[Any]:
    """The rows of an output that the denoiser reads: `[rows, features]`, or `[rows, layers, features]`."""
    rows = token_rows([output], outputs)
    return outputs[output.name] if rows is None else rows[case.read(preset)]
