"""A bundle in the place of a pipeline's text encoder.

    encoder = load_text_encoder("t5.bundle")
    pipeline = FluxPipeline.from_pretrained("black-forest-labs/FLUX.1-dev", text_encoder_2=encoder)

Needs `transformers`, whose classes pipelines expect, but not `diffusers`.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import fields
from functools import cache
from pathlib import Path
from typing import Any, NoReturn

import torch
import transformers  # noqa: TID253 - who imports this module has it loaded
from torch import Tensor, nn
from transformers import AutoConfig, PreTrainedModel  # noqa: TID253
from transformers.modeling_outputs import (  # noqa: TID253
    BaseModelOutput,
    BaseModelOutputWithPast,
    BaseModelOutputWithPooling,
    BaseModelOutputWithPoolingAndCrossAttentions,
    CausalLMOutputWithPast,
)
from transformers.models.clip.modeling_clip import CLIPTextModelOutput  # noqa: TID253

from skrr_export import open_session
from skrr_export.encoders import FAMILIES
from skrr_export.errors import BundleError, InputError, OutputError
from skrr_export.manifest import CONFIG, Manifest
from skrr_export.targets.base import Ids, Session

WITHOUT_EFFECT = ("use_cache", "output_attentions")
"""Arguments of `forward` that pipelines set and that change nothing of what they read."""


def load_text_encoder(
    bundle: str | Path,
    target: str = "onnx",
    device: str = "cpu",
    *,
    mode: str = "mapped",
    threads: int | None = None,
    runtime: str = "default",
) -> TextEncoder:
    """Open a bundle as a text encoder that a pipeline of `diffusers` takes.

    Args:
        bundle: the bundle's directory, exported for that pipeline and its encoder.
        target: which of its formats.
        device: `cpu` or `cuda`; the encoder runs there from now on.
        mode: see `skrr_export.open_session`.
        threads: likewise.
        runtime: likewise.

    Returns:
        What the pipeline's constructor and its `from_pretrained` take as `text_encoder`, `text_encoder_2` and so on.

    Raises:
        SkrrError: it cannot be loaded.
    """
    session = open_session(bundle, target=target, device=device, mode=mode, threads=threads, runtime=runtime)
    return text_encoder(session, device if torch.cuda.is_available() else "cpu")


def text_encoder(session: Session, device: str = "cpu") -> TextEncoder:
    """Dress a session up as a text encoder that a pipeline of `diffusers` takes.

    Args:
        session: of an open bundle.
        device: where the pipeline should take it to be, at first.

    Raises:
        BundleError: `transformers` cannot read the bundle's configuration.
    """
    config = _read_config(session)
    model, output_class = _stands_for(session.bundle.manifest, config)
    return _in_place_of(model)(session, config, output_class, torch.device(device))


class TextEncoder(PreTrainedModel):  # type: ignore[no-untyped-call]
    """An exported encoder that takes and gives what the model of `transformers` does that it was exported from.

    It holds no weights: they are the session's, and stay on the device where that was opened. `.to()` says where the
    inputs and outputs are (`.device`) and of which type the outputs (`.dtype`, at first the bundle's), so that
    pipelines and their offloading treat it like any other. Ids go to the session, and what comes back goes to where
    the ids were.

    What the model would give and the bundle does not is there as tensors that have a shape and raise an `InputError`
    when they are used.
    """

    main_input_name = "input_ids"

    def __init__(self, session: Session, config: Any, output_class: type[Any], device: torch.device) -> None:
        nn.Module.__init__(self)  # the model's own __init__ would make its layers
        self.session = session
        self.config = config
        self._output_class = output_class
        # Nothing, but it is moved and converted like weights, and offloading asks the first parameter where it is.
        place = torch.empty(0, dtype=session.bundle.manifest.dtype.torch, device=device)
        self._place = nn.Parameter(place, requires_grad=False)

    @property
    def device(self) -> torch.device:
        """Where it is, for pipelines."""
        return self._place.device

    @property
    def dtype(self) -> torch.dtype:
        """What it gives its outputs in."""
        return self._place.dtype

    @torch.no_grad()
    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        *,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        **others: Any,
    ) -> Any:
        """Encode a batch.

        Args:
            input_ids: `[batch, sequence]`.
            attention_mask: `[batch, sequence]`, zero or false for padding; all ones where the pipeline that the bundle
                was exported for passes none.
            position_ids: `[..., sequence]`, counted from 0.
            output_hidden_states: whether the output has `hidden_states`.
            return_dict: `False`: give a tuple, not the model's output class.
            others: what else pipelines pass; refused where it would change the result.

        Raises:
            InputError: the bundle cannot do what is asked.
        """
        _refuse(input_ids, position_ids, others)
        arrays = self.session.encode(input_ids.numpy(force=True), self._mask(attention_mask))
        given = {name: torch.from_numpy(array).to(input_ids.device, self.dtype) for name, array in arrays.items()}
        with_states = self.config.output_hidden_states if output_hidden_states is None else output_hidden_states
        output = self._assemble(given, *input_ids.shape, with_states=bool(with_states))
        return output.to_tuple() if return_dict is False else output

    def _mask(self, attention_mask: Tensor | None) -> Ids | None:
        preset = self.session.bundle.manifest.pipeline
        if attention_mask is None or (not preset.masked and bool(attention_mask.all())):
            return None
        if not preset.masked:
            raise InputError(
                f"{self.session.bundle.directory} was exported for the pipeline '{preset.name}', which passes its "
                "encoder no attention_mask; this one masks padding: export it for the pipeline that runs here"
            )
        mask: Ids = (attention_mask != 0).long().numpy(force=True)
        return mask

    def _assemble(self, given: Mapping[str, Tensor], batch: int, sequence: int, *, with_states: bool) -> Any:
        """The model's output from the bundle's by name, and from stand-ins."""
        manifest = self.session.bundle.manifest
        hidden = manifest.hidden_size
        states = [
            self._unexported(f"hidden_states[{layer}]", batch, sequence, hidden)
            for layer in range(manifest.num_layers + 1)
        ]
        for layer, state in _states(manifest, given).items():
            states[layer] = state
        normed_last = FAMILIES[manifest.family].norms_last
        values = {
            "logits": self._unexported("logits", batch, sequence, manifest.vocab_size),
            "pooler_output": self._unexported("pooler_output", batch, hidden),
            "last_hidden_state": states[-1]
            if normed_last
            else self._unexported("last_hidden_state", batch, sequence, hidden),
            **given,
            "hidden_states": tuple(states) if with_states else None,
        }
        return self._output_class(**{field.name: values.get(field.name) for field in fields(self._output_class)})

    def _unexported(self, name: str, *shape: int) -> Tensor:
        return Unexported(shape, self.dtype, f"{name} is not exported: {self._contents()}")

    def _contents(self) -> str:
        bundle = self.session.bundle
        outputs = [entry.output for entry in bundle.manifest.outputs]
        names = [f"hidden_states{list(output.layers)}" if output.layers else output.name for output in outputs]
        return f"{bundle.directory} gives {' and '.join(names)}, for the pipeline '{bundle.manifest.pipeline.name}'"

    @classmethod
    def from_pretrained(  # type: ignore[override]
        cls, directory: str | Path, *, dtype: torch.dtype | None = None, **_: Any
    ) -> TextEncoder:
        """Open what `save_pretrained` wrote, with the options that `load_text_encoder` has by itself.

        Args:
            directory: the bundle.
            dtype: of the outputs; default: the bundle's.

        Raises:
            SkrrError: it cannot be loaded.
        """
        encoder = load_text_encoder(directory)
        return encoder if dtype is None else nn.Module.to(encoder, dtype)

    def save_pretrained(self, directory: str | Path, **_: Any) -> None:  # type: ignore[override]
        """Copy the bundle, so that a pipeline is saved as a whole.

        Raises:
            OutputError: it cannot be written.
        """
        bundle = self.session.bundle.directory
        try:
            if Path(directory).resolve() != bundle.resolve():
                shutil.copytree(bundle, directory, dirs_exist_ok=True)
        except OSError as error:
            raise OutputError(f"cannot copy {bundle} to {directory}: {error}") from error

    def get_input_embeddings(self) -> NoReturn:
        """Raise: textual inversion would change them, and an exported encoder has none.

        Raises:
            InputError: always.
        """
        raise InputError(f"an exported encoder has no embeddings to change: {self._contents()}")

    def generate(self, *_: Any, **__: Any) -> NoReturn:
        """Raise: some pipelines have their encoder rewrite a prompt, and an exported encoder writes no text.

        Raises:
            InputError: always.
        """
        raise InputError(f"an exported encoder writes no text: {self._contents()}")

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError as error:
            if name.startswith("_") or "session" not in self.__dict__:
                raise
            raise NoSuchPartError(f"an exported encoder has no '{name}': {self._contents()}") from error

    def extra_repr(self) -> str:
        """What `repr` shows."""
        return self._contents()


class NoSuchPartError(InputError, AttributeError):
    """Something of the model that was exported is not there, such as one of its layers."""


class Unexported(Tensor):
    """Stands for a tensor that is not there: has a shape, and raises when its values are used."""

    message: str

    @staticmethod
    def __new__(cls, shape: tuple[int, ...], dtype: torch.dtype, message: str) -> Unexported:
        """Make one that raises an `InputError` with a message."""
        made: Unexported = Tensor._make_subclass(cls, torch.empty(shape, dtype=dtype, device="meta"))
        made.message = message
        return made

    @classmethod
    def __torch_function__(
        cls,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        if func in _LOOKS:
            return super().__torch_function__(func, types, args, kwargs)  # type: ignore[no-untyped-call]
        if func is Tensor.to:  # pipelines and hooks move everything before they use some of it
            return args[0]
        used = (*args, *(kwargs or {}).values())
        raise InputError(next(tensor.message for tensor in _flat(used) if isinstance(tensor, cls)))

    def __repr__(self) -> str:  # type: ignore[override]
        return f"<{self.message}>"


_LOOKS = (
    *(getattr(Tensor, name).__get__ for name in ("device", "dtype", "layout", "ndim", "requires_grad", "shape")),
    Tensor.dim,
    Tensor.is_floating_point,
    Tensor.size,
)
"""What can be asked of a tensor without its values."""


def _flat(values: Iterable[Any]) -> Iterator[Any]:
    for value in values:
        if isinstance(value, (list, tuple)):
            yield from _flat(value)
        else:
            yield value


@cache
def _in_place_of(model: Any) -> type[TextEncoder]:
    """The class whose instances are also the model's, with which pipelines annotate what they take."""
    bases = (TextEncoder, model)
    return type(TextEncoder.__name__, bases, {"__module__": __name__})


_MODELS: Mapping[str, tuple[str, type[Any]]] = {
    "t5": ("T5EncoderModel", BaseModelOutput),
    "umt5": ("UMT5EncoderModel", BaseModelOutput),
    "bert": ("BertModel", BaseModelOutputWithPoolingAndCrossAttentions),
    "clip": ("CLIPTextModel", BaseModelOutputWithPooling),
    "clip, projected": ("CLIPTextModelWithProjection", CLIPTextModelOutput),
}
"""The model of `transformers` and its output class, by family; of others, the configuration names the model."""


def _stands_for(manifest: Manifest, config: Any) -> tuple[Any, type[Any]]:
    """The model that a bundle stands for, and its output class."""
    kinds = {entry.output.kind for entry in manifest.outputs}
    family = "clip, projected" if manifest.family == "clip" and "text_embeds" in kinds else manifest.family
    if family in _MODELS:
        name, output_class = _MODELS[family]
        return getattr(transformers, name), output_class
    name = next(iter(config.architectures or ()), "")
    model = getattr(transformers, name, None)
    if not isinstance(model, type) or not issubclass(model, PreTrainedModel):
        model = PreTrainedModel
    # Who reads the last hidden state takes it from a model without a head, whatever the checkpoint has.
    headed = name.endswith(("ForCausalLM", "ForConditionalGeneration")) and "last_hidden_state" not in kinds
    return model, CausalLMOutputWithPast if headed else BaseModelOutputWithPast


def _read_config(session: Session) -> Any:
    """The configuration of the model that a bundle stands for."""
    directory = session.bundle.directory
    try:
        config = AutoConfig.from_pretrained(directory)
    except Exception as error:  # its validators' exceptions share no base but this
        raise BundleError(f"transformers cannot read {directory / CONFIG}: {error}") from error
    whole_clip = session.bundle.manifest.family == "clip" and hasattr(config, "text_config")
    return config.text_config if whole_clip else config


def _states(manifest: Manifest, given: Mapping[str, Tensor]) -> Mapping[int, Tensor]:
    """The hidden states that are given, by layer; joined ones are taken apart."""
    entry = manifest.rows
    if entry is None:
        return {}
    rows, layers = given[entry.output.name], entry.output.layers
    if not layers:
        return {manifest.num_layers: rows} if FAMILIES[manifest.family].norms_last else {}
    if entry.output.join == "stack":
        return dict(zip(layers, rows.unbind(1), strict=True))
    return dict(zip(layers, torch.split(rows, entry.features, dim=-1), strict=True))


def _refuse(input_ids: Tensor, position_ids: Tensor | None, others: Mapping[str, Any]) -> None:
    """Make sure that nothing is asked for that would change the result."""
    counted = torch.arange(input_ids.shape[-1], device=input_ids.device)
    if position_ids is not None and (position_ids.shape[-1:] != counted.shape or bool((position_ids != counted).any())):
        raise InputError("an exported encoder counts positions from 0, and the position_ids given do not")
    for name, value in others.items():
        first_segment = name == "token_type_ids" and isinstance(value, Tensor) and not value.any()
        if value is not None and value is not False and name not in WITHOUT_EFFECT and not first_segment:
            raise InputError(f"an exported encoder takes no {name}")
