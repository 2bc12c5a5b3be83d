"""Test vectors: ids, mask and expected output in a bundle, by which any runtime proves itself without the checkpoint.

What is expected comes from `transformers` in fp32, under the same plan on the checkpoint's weights. The file's layout
and the test are specified in `runtimes/BUNDLE.md`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import safetensors.numpy
from safetensors import SafetensorError, safe_open

from skrr_export.bundle import Bundle
from skrr_export.errors import BundleError
from skrr_export.manifest import Manifest, VectorsEntry
from skrr_export.measure.cases import Case, random_case
from skrr_export.measure.fidelity import Deviation, DeviationMeter
from skrr_export.measure.limits import LIMITS
from skrr_export.progress import Progress, silent
from skrr_export.prompts import default_prompts, spread
from skrr_export.targets.base import Ids, Session
from skrr_export.tokenization import Tokenizer

FILE = "vectors.safetensors"


@dataclass(frozen=True, slots=True, eq=False)
class Vector:
    """A batch, and what the encoder makes of it."""

    case: Case
    expected: npt.NDArray[np.float32]
    """`[batch, sequence, hidden_size]`, of the reference in fp32."""


@dataclass(frozen=True, slots=True)
class SelfTest:
    """How a runtime did."""

    vectors: int
    ids_equal: bool | None
    """Whether the prompts gave the vectors' ids and masks; `None`: not checked, the bundle or the vectors lack them."""
    computes_in: str
    """Precision, which decides the limits."""
    rows: Deviation
    """Of the rows that the denoiser reads."""
    nonfinite: int
    """Values that are NaN or infinite, in any row."""
    limits: dict[str, float]

    @property
    def passed(self) -> bool:
        """Whether the runtime is right."""
        close = (
            self.rows.relative_l2 is not None
            and self.rows.relative_l2 <= self.limits["relative_l2"]
            and self.cosine_distance is not None
            and self.cosine_distance <= self.limits["cosine_distance"]
        )
        return close and not self.nonfinite and self.ids_equal is not False

    @property
    def cosine_distance(self) -> float | None:
        """Of the worst row."""
        return None if self.rows.cosine_min is None else max(0.0, 1 - self.rows.cosine_min)

    def to_dict(self) -> dict[str, Any]:
        """For `--json`."""
        return {
            "passed": self.passed,
            "vectors": self.vectors,
            "ids_equal": self.ids_equal,
            "computes_in": self.computes_in,
            "relative_l2": self.rows.relative_l2,
            "cosine_distance": self.cosine_distance,
            "nonfinite": self.nonfinite,
            "limits": self.limits,
        }

    def __str__(self) -> str:
        ids = {None: "not checked", True: "equal", False: "DIFFERENT"}[self.ids_equal]
        values = [
            f"{name.replace('_l2', ' L2').replace('_', ' ')} {'not finite' if value is None else f'{value:.2g}'} "
            f"(limit {self.limits[name]:.2g})"
            for name, value in (("relative_l2", self.rows.relative_l2), ("cosine_distance", self.cosine_distance))
        ]
        bad = f", {self.nonfinite} values not finite" if self.nonfinite else ""
        verdict = "passed" if self.passed else "FAILED"
        return f"self-test: {self.vectors} vectors, {', '.join(values)}{bad}, token ids {ids}: {verdict}"


def choose_cases(manifest: Manifest, tokenizer: Tokenizer | None, count: int) -> Iterator[Case]:
    """The batches of a bundle's vectors: the null prompt and others, or random ids where there is no tokenizer."""
    if tokenizer is None:
        yield from _random_cases(manifest, np.random.default_rng(0), count)
        return
    prompts = spread(["", *(prompt for prompt in default_prompts() if prompt)], count)
    for number in range(len(prompts)):
        batch = tuple(prompts[(number + row) % len(prompts)] for row in range(manifest.batch or 1))
        tokens = tokenizer(batch)
        yield Case(str(number), tokens.input_ids, tokens.attention_mask, batch)


def _random_cases(manifest: Manifest, random: np.random.Generator, count: int) -> Iterator[Case]:
    for number in range(count):
        longest = manifest.pipeline.max_length
        shape = (manifest.batch or 2, manifest.sequence or int(random.integers(1, longest + 1)))
        lengths = random.integers(1, shape[1] + 1, shape[0])
        yield random_case(str(number), shape, lengths, manifest.vocab_size, random)


def make(
    manifest: Manifest, cases: Sequence[Case], encode: Callable[[Ids, Ids | None], npt.NDArray[np.float32]]
) -> tuple[VectorsEntry, bytes]:
    """The vectors' file, and what the manifest says of it.

    Args:
        manifest: of the bundle they are for.
        cases: the batches.
        encode: the reference.
    """
    tensors: dict[str, npt.NDArray[Any]] = {}
    for number, case in enumerate(cases):
        tensors[f"{number}.input_ids"] = case.input_ids
        tensors[f"{number}.attention_mask"] = case.attention_mask
        tensors[f"{number}.last_hidden_state"] = encode(case.input_ids, case.given(manifest.pipeline))
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
            return [_read(file, number, prompts[number]) for number in range(entry.count)]
    except (SafetensorError, OSError, KeyError, ValueError, TypeError, IndexError) as error:
        raise BundleError(f"{path}: malformed test vectors: {error}") from error


def _read(file: Any, number: int, prompts: Any) -> Vector:
    ids, mask, expected = (
        file.get_tensor(f"{number}.{name}") for name in ("input_ids", "attention_mask", "last_hidden_state")
    )
    if not (ids.ndim == 2 and ids.shape == mask.shape == expected.shape[:2] and expected.ndim == 3):
        raise ValueError(f"vector {number} has ids {ids.shape}, mask {mask.shape}, output {expected.shape}")
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
    rows, nonfinite, equal = DeviationMeter(), 0, []
    for done, vector in enumerate(vectors):
        progress("testing", done, len(vectors))
        case = vector.case
        if tokenizer is not None and case.prompts:
            tokens = tokenizer(case.prompts)
            same = (tokens.input_ids, case.input_ids), (tokens.attention_mask, case.attention_mask)
            equal.append(all(np.array_equal(ours, theirs) for ours, theirs in same))
        given = case.given(bundle.manifest.pipeline)
        ours = session.encode(case.input_ids, given)["last_hidden_state"].astype(np.float32)
        nonfinite += int((~np.isfinite(ours)).sum())
        read_rows = case.read(bundle.manifest.pipeline)
        rows.add(ours[read_rows], vector.expected[read_rows])
    assert bundle.manifest.vectors is not None
    return SelfTest(
        vectors=len(vectors),
        ids_equal=all(equal) if equal else None,
        computes_in=session.computes_in.name,
        rows=rows.result(),
        nonfinite=nonfinite,
        limits=dict(bundle.manifest.vectors.limits[session.computes_in.name]),
    )
