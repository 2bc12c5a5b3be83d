"""Write a bundle as a Triton model repository: a tokenizer, the encoder, and the ensemble of both.

Where the pipeline takes only some of the encoder's rows, or zeros in their place, a small model more does that.
"""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

from skrr_export.bundle import Bundle
from skrr_export.errors import OutputError
from skrr_export.manifest import MANIFEST
from skrr_export.staging import StagedDirectory
from skrr_export.tokenization import Tokenizer
from skrr_export.triton.choices import Choices, Serving, decide
from skrr_export.triton.config import encoder_config, ensemble_config, finisher_config, tokenizer_config
from skrr_export.triton.pbtxt import to_text
from skrr_export.triton.tokenizer import tokenizer_files

VERSION = "1"
KEEP = ".keep"
"""A file in the ensemble's version directory, which Triton wants and object stores would not keep empty."""


def write_repository(bundle: Bundle, output: Path, choices: Choices, *, replace: bool = False) -> Serving:
    """Write a model repository, whole or not at all.

    The encoder's version directory is the bundle, by hard links where the file system has them.

    Raises:
        BundleError: the bundle lacks what is to be served.
        InputError: a choice cannot work with this bundle.
        OutputError: it cannot be written, or exists and may not be replaced.
    """
    serving = decide(bundle, choices)
    Tokenizer.of_bundle(bundle)  # fails here rather than in the server
    encoder, tokenizer = f"{serving.encoder}/{VERSION}", f"{serving.tokenizer}/{VERSION}"
    if replace:
        _check_alone(output, set(serving.models))
    kind = f"Triton repository of {serving.name}"
    with StagedDirectory(output, replace=replace, marker=f"{encoder}/{MANIFEST}", kind=kind) as staged:
        for name in (MANIFEST, *bundle.manifest.files):
            staged.link(f"{encoder}/{name}", bundle.directory / name)
        for name in (MANIFEST, *tokenizer_files(bundle.manifest)):
            staged.write(f"{tokenizer}/{name}", (bundle.directory / name).read_bytes())
        staged.write(f"{tokenizer}/model.py", _model("tokenizer"))
        if serving.backend == "python":
            staged.write(f"{encoder}/{serving.file}", _model("encoder"))
        if serving.finisher is not None:
            staged.write(f"{serving.finisher}/{VERSION}/{MANIFEST}", (bundle.directory / MANIFEST).read_bytes())
            staged.write(f"{serving.finisher}/{VERSION}/model.py", _model("rows"))
            staged.write(f"{serving.finisher}/config.pbtxt", to_text(finisher_config(serving)).encode())
        staged.write(f"{serving.name}/{VERSION}/{KEEP}", b"")
        staged.write(f"{serving.tokenizer}/config.pbtxt", to_text(tokenizer_config(serving)).encode())
        staged.write(f"{serving.encoder}/config.pbtxt", to_text(encoder_config(serving)).encode())
        staged.write(f"{serving.name}/config.pbtxt", to_text(ensemble_config(serving)).encode())
    return serving


def _model(name: str) -> bytes:
    return files("skrr_export.triton.models").joinpath(f"{name}.py").read_bytes()


def _check_alone(output: Path, models: set[str]) -> None:
    """A repository can hold other models, which replacing it would remove."""
    others = sorted(path.name for path in output.iterdir() if path.name not in models) if output.is_dir() else []
    if others:
        raise OutputError(f"{output} also holds {', '.join(others)}, which --force would remove; choose another output")
