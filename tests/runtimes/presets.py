"""Pipelines for tiny encoders that stand in for the real ones, so that every runtime meets every rule.

A T5 takes the place of whatever a pipeline feeds; a CLIP is itself, with its two kinds of output.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from skrr_export.bundle import Bundle
from skrr_export.outputs import Output
from skrr_export.pipelines import PRESETS, Preset
from tests.bundles import export, soften
from tests.checkpoints import t5_checkpoint
from tests.families.clip import clip_checkpoint
from tests.pipelines.tokenizers import MISTRAL, QWEN3, VOCABULARY, small_tokenizer

BundleFor = Callable[[str], Bundle]

PROMPTS = ("a cat", "", "two dogs on a hill, oil on canvas", "spaced out", "word and word " * 150 + "word")
"""Such as no cleaning changes; the last is cut."""
UNTIDY = (" Two  Dogs [IMG] </s>", "<|im_end|> ein Bär, 熊\n")
"""What the rules for texts change, and special tokens that are found."""


def _stand_in(key: str, **changes: Any) -> Preset:
    """A preset for any encoder of four layers; joined layers are some that it has."""
    preset = PRESETS[key]
    joined = {"concatenate": (1, 2, 3), "stack": (1, 4)}
    outputs = (replace(output, layers=joined[output.join]) if output.join else output for output in preset.outputs)
    own = {"name": f"like {preset.name}", "encoder": None, "families": None, "outputs": tuple(outputs)}
    return replace(preset, **{**own, **changes})


STAND_INS: Mapping[str, Preset] = {
    "cleaned": _stand_in("pixart-alpha"),
    "zeroed": _stand_in("wan"),
    "one more row": _stand_in("chroma"),
    "cropped inside, bare negatives": _stand_in("sana"),
    "text before": _stand_in("lumina2"),
    "text around, cropped": _stand_in("hunyuanvideo/text_encoder"),
    "packed": _stand_in("qwen-image"),
    "packed, few rows": _stand_in("qwen-image", padding_side="left", max_rows=12),
    "chat": _stand_in("z-image"),
    "concatenated": _stand_in("flux.2"),
    "stacked": _stand_in("hidream/text_encoder_4"),
    "stacked, packed": _stand_in("qwen-image", outputs=(Output("hidden_states", (0, 2, 4), "stack"),)),
    "left, in sixteens": _stand_in("cogview4", padding_side="left"),
    "right, in sixteens": _stand_in("cogview4", padding_side="right", max_length=40),
}
"""By what they do."""
CLIPS = ("flux.1/text_encoder", "sd3/text_encoder", "stable-cascade")
"""Presets that take a pooled output alone, or both kinds; the last with a mask."""


def _prepare(preset: Preset, directory: Path) -> Path:
    if preset.families == ("clip",):
        return clip_checkpoint(directory, layers=4, tokenizer=True, max_position_embeddings=77)
    checkpoint = soften(t5_checkpoint(directory, layers=4, vocab_size=VOCABULARY))
    template = MISTRAL if preset.chat is not None and preset.chat.parts else QWEN3
    small_tokenizer("<cls> $A </s>", chat_template=template, padding_side="right").save_pretrained(checkpoint)
    return checkpoint


def export_for(key: str, directory: Path, **options: Any) -> Bundle:
    """Export a tiny encoder for one of the stand-ins, or for a preset of CLIP."""
    own = STAND_INS.get(key)
    checkpoint = _prepare(own or PRESETS[key], directory / "encoder")
    return export(checkpoint, directory / "made.bundle", preset=own, pipeline=own.name if own else key, **options)


@pytest.fixture(scope="session")
def bundle_for(remembered_traces: None, tmp_path_factory: pytest.TempPathFactory) -> BundleFor:
    """`export_for`, once each, with test vectors."""
    made: dict[str, Bundle] = {}

    def bundle(key: str) -> Bundle:
        if key not in made:
            made[key] = export_for(key, tmp_path_factory.mktemp("stand-in"), vectors=3)
        return made[key]

    return bundle


def prompts_for(bundle: Bundle) -> Sequence[str]:
    """Prompts of which every runtime has to make the same."""
    return PROMPTS if bundle.manifest.pipeline.clean else (*PROMPTS, *UNTIDY)
