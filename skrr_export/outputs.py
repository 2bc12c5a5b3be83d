"""What a pipeline takes of its encoder: the last hidden state, others, several joined, or a pooled vector."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

from skrr_export.errors import InputError

Kind = Literal["last_hidden_state", "hidden_states", "pooler_output", "text_embeds"]
"""As `transformers` names them."""
Join = Literal["concatenate", "stack"]


@dataclass(frozen=True, slots=True)
class Output:
    """One tensor that an encoder gives.

    Per token it is `[batch, sequence, features]`, or `[batch, layers, sequence, features]` of stacked layers; pooled it
    is `[batch, features]`.
    """

    kind: Kind
    layers: tuple[int, ...] = ()
    """Of `hidden_states`, as `transformers` counts them: 0 is the embedding, k is what layer k hands on, and negative
    numbers count from the end. None at all, but joined, are all but the embedding. The last one is final-normed where
    the family's is in `transformers`."""
    join: Join | None = None
    """Of several layers: side by side on the feature axis, or stacked on an axis of their own, after the batch."""

    def __post_init__(self) -> None:
        if self.kind not in get_args(Kind) or self.join not in (None, *get_args(Join)):
            raise InputError(f"no encoder gives {self.kind!r} joined by {self.join!r}")
        if self.kind == "hidden_states":
            fits = len(self.layers) != 1 if self.join else len(self.layers) == 1
        else:
            fits = not self.layers and self.join is None
        if not fits:
            raise InputError(f"{self.kind} of the layers {list(self.layers)}, joined by {self.join!r}, is no output")

    @property
    def name(self) -> str:
        """What graphs call it."""
        return f"{self.kind}.{self.layers[0]}" if len(self.layers) == 1 else self.kind

    @property
    def pooled(self) -> bool:
        """Whether it has one row a prompt instead of one a token."""
        return self.kind in ("pooler_output", "text_embeds")

    def shape(self, features: int) -> tuple[int | str, ...]:
        """Its shape, free dimensions by name, where one hidden state or pooled vector is `features` wide."""
        if self.pooled:
            return ("batch", features)
        if self.join == "stack":
            return ("batch", len(self.layers), "sequence", features)
        return ("batch", "sequence", features * max(1, len(self.layers)))

    def resolve(self, num_layers: int) -> Output:
        """The same output with its layers written out, and counted from the start.

        Raises:
            InputError: the encoder has too few layers.
        """
        if self.join is not None and not self.layers:
            return replace(self, layers=tuple(range(1, num_layers + 1)))
        for layer in self.layers:
            if not -num_layers - 1 <= layer <= num_layers:
                raise InputError(f"it reads hidden_states[{layer}], and the encoder has {num_layers} layers")
        return replace(self, layers=tuple(layer % (num_layers + 1) for layer in self.layers))

    def to_dict(self) -> dict[str, Any]:
        """The output as presets and manifests hold it."""
        return {"kind": self.kind, "layers": list(self.layers), "join": self.join}

    @classmethod
    def from_dict(cls, document: Mapping[str, Any]) -> Output:
        """Read an output.

        Raises:
            KeyError, TypeError, ValueError: it is malformed.
        """
        layers = document["layers"]
        if not isinstance(layers, list) or not all(type(layer) is int for layer in layers):
            raise TypeError(f"layers must not be {layers!r}")
        try:
            return cls(document["kind"], tuple(layers), document["join"])
        except InputError as error:
            raise ValueError(str(error)) from error


LAST = Output("last_hidden_state")
