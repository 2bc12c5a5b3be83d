"""From embeddings to images: the shipped denoiser, classifier-free guidance, a scheduler of diffusers."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from skrr_export.demo.world import SIDE
from skrr_export.progress import Progress, silent
from skrr_export.tokenization import encode_prompts

if TYPE_CHECKING:
    import torch

    from skrr_export.targets.base import Session

Images = NDArray[np.uint8]
"""`[prompts, SIDE, SIDE, 3]`."""

STEPS = 20
GUIDANCE = 2.0
"""How far the prediction with the prompt is followed beyond the one without."""
_BATCH = 32
"""Images drawn at once."""


@dataclass(frozen=True, slots=True)
class Embedded:
    """What an encoder made of prompts."""

    rows: NDArray[np.float32]
    """`[prompts, sequence, hidden]`."""
    mask: NDArray[np.int64]
    """`[prompts, sequence]`: 1 for tokens, 0 for padding."""


def embed(session: Session, prompts: Sequence[str], *, progress: Progress = silent) -> Embedded:
    """What a bundle's encoder makes of prompts."""
    arrays = encode_prompts(session, prompts, progress=progress)
    return Embedded(arrays["last_hidden_state"].astype(np.float32), arrays["attention_mask"].astype(np.int64))


class Sampler:
    """Draws images of what embeddings say."""

    def __init__(self, pipeline: Path) -> None:
        """Load a denoiser and its scheduler.

        Args:
            pipeline: directory with the folders `transformer` and `scheduler`, as diffusers writes them.
        """
        import diffusers
        import torch

        library: Any = diffusers  # untyped
        denoiser = library.PixArtTransformer2DModel.from_pretrained(
            pipeline, subfolder="transformer", torch_dtype=torch.float32
        )
        self._denoiser = denoiser.eval()
        self._scheduler = library.DPMSolverMultistepScheduler.from_pretrained(pipeline, subfolder="scheduler")

    @property
    def parameters(self) -> int:
        """How many parameters the denoiser has."""
        return sum(parameter.numel() for parameter in self._denoiser.parameters())

    def draw(
        self,
        prompts: Embedded,
        empty: Embedded,
        seeds: Sequence[int],
        *,
        threads: int = 1,
        progress: Progress = silent,
    ) -> Images:
        """Draw an image for each prompt.

        Args:
            prompts: their embeddings.
            empty: that of the empty prompt, one row.
            seeds: of the noise that each image starts from, one for each prompt.
            threads: each of which draws a batch at a time.
            progress: told how many images are done.

        Returns:
            An image depends on its own prompt and seed only.
        """
        import torch

        def batch(start: int) -> Images:
            part = slice(start, start + _BATCH)
            rows, mask = _beside(prompts.rows[part], prompts.mask[part], empty)
            with torch.inference_mode():
                return self._images(torch.from_numpy(rows), torch.from_numpy(mask), seeds[part])

        images: list[Images] = []
        progress("drawing", 0, len(seeds))
        with ThreadPoolExecutor(threads) as pool:
            for drawn in pool.map(batch, range(0, len(seeds), _BATCH)):
                images.append(drawn)
                progress("drawing", sum(map(len, images)), len(seeds))
        return np.concatenate(images)

    def _images(self, rows: torch.Tensor, mask: torch.Tensor, seeds: Sequence[int]) -> Images:
        import torch

        noise = [torch.randn(3, SIDE, SIDE, generator=torch.Generator().manual_seed(seed)) for seed in seeds]
        images = torch.stack(noise)
        scheduler = deepcopy(self._scheduler)  # it remembers what it draws
        scheduler.set_timesteps(STEPS)
        for step in scheduler.timesteps:
            both = self._denoiser(
                torch.cat([images, images]),
                encoder_hidden_states=rows,
                encoder_attention_mask=mask.to(rows.dtype),
                timestep=step.expand(len(mask)),
                return_dict=False,
            )[0]
            with_prompt, without = both.chunk(2)
            images = scheduler.step(without + GUIDANCE * (with_prompt - without), step, images, return_dict=False)[0]
        return ((images.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()


def distances(images: Images, others: Images) -> NDArray[np.float64]:
    """How far each image is from another: root mean square of pixels, whose channels go from 0 to 1; `[prompts]`."""
    difference = (images.astype(np.float64) - others) / 255
    distance: NDArray[np.float64] = np.sqrt(np.square(difference).mean(axis=(1, 2, 3)))
    return distance


def _beside(
    rows: NDArray[np.float32], mask: NDArray[np.int64], empty: Embedded
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Prompts, and the empty prompt as often; the shorter is padded."""
    count, length = len(mask), max(mask.shape[1], empty.mask.shape[1])
    both_rows = np.zeros((2 * count, length, rows.shape[2]), np.float32)
    both_mask = np.zeros((2 * count, length), np.int64)
    for half, part_rows, part_mask in (
        (slice(None, count), rows, mask),
        (slice(count, None), empty.rows, empty.mask),
    ):
        both_rows[half, : part_mask.shape[1]] = part_rows
        both_mask[half, : part_mask.shape[1]] = part_mask
    return both_rows, both_mask
