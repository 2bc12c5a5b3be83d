"""Hidden states of arrangements, computed once where arrangements begin alike."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable, Sequence, Set

import torch
from torch import Tensor

from skrr_export.calibration import Chunk
from skrr_export.encoders.eager import EagerEncoder
from skrr_export.search.space import Arrangement, executed


class TensorCache:
    """Tensors by key, the least recently used dropped when they no longer fit."""

    def __init__(self, budget_bytes: int) -> None:
        """Hold at most `budget_bytes`."""
        self._budget = self._left = budget_bytes
        self._tensors: OrderedDict[Hashable, Tensor] = OrderedDict()

    def get(self, key: Hashable) -> Tensor | None:
        """The tensor, if it is still held."""
        tensor = self._tensors.get(key)
        if tensor is not None:
            self._tensors.move_to_end(key)
        return tensor

    def put(self, key: Hashable, tensor: Tensor) -> None:
        """Hold a tensor, unless it alone exceeds the budget."""
        if key in self._tensors:
            self._left += self._tensors.pop(key).nbytes
        if tensor.nbytes > self._budget:
            return  # or it would drop all others, and then itself
        self._tensors[key] = tensor
        self._left -= tensor.nbytes
        while self._left < 0:
            self._left += self._tensors.popitem(last=False)[1].nbytes


class ActivationEngine:
    """Runs arrangements on chunks. What runs before a change is computed once for all that share it.

    The state after some sub-blocks depends on which ran, in which order, and on nothing else: not on the positions
    that were skipped in between. So the cache's key is the sequence that ran, and arrangements of different beams, or
    of different steps of a search, find each other's work.
    """

    def __init__(self, encoder: EagerEncoder, chunks: Sequence[Chunk], cache_bytes: int) -> None:
        """Prepare to run.

        Args:
            encoder: runs sub-blocks, and gives one output.
            chunks: the prompts; named by their number from here on.
            cache_bytes: how much memory hidden states may hold.
        """
        self.encoder = encoder
        self.chunks = chunks
        (self._output,) = encoder.outputs
        self.evaluated = 0
        """Work done so far, in sub-blocks times tokens."""
        self.naive = 0
        """Work that measuring every candidate whole would have been, likewise."""
        self.cache = TensorCache(cache_bytes)
        self._beside: tuple[int, dict[str, Tensor]] | None = None

    def hidden(self, number: int, sequence: tuple[int, ...], shared: int) -> Tensor:
        """`hidden` `[batch, sequence, hidden_size]` of a chunk after the units of `sequence` ran.

        Args:
            number: of the chunk.
            sequence: units, in the order in which they run.
            shared: states up to this many units are worth keeping, for others begin with them.
        """
        return self._states(number, sequence, {len(sequence)}, shared)[len(sequence)]

    @torch.inference_mode()
    def output(self, number: int, arrangement: Arrangement, fork: int) -> Tensor:
        """What the encoder gives of a chunk, the rows that count, `[rows, features]`, float32.

        Stacked layers are features side by side; of a pooled output there is a row a prompt.

        Args:
            number: of the chunk.
            arrangement: what runs, up to the last layer that the output needs.
            fork: the position from which it differs from the arrangement it comes from.
        """
        layers = self.encoder.encoder.read_on_the_way([self._output])
        ran = {layer: len(executed(arrangement[: 2 * layer])) for layer in layers}
        sequence = executed(arrangement)
        states = self._states(number, sequence, {*ran.values(), len(sequence)}, len(executed(arrangement[:fork])))
        read = {f"hidden_states.{layer}": states[count] for layer, count in ran.items()}
        beside = self._start(number)
        finished = self.encoder.finish({**beside, **read, "hidden": states[len(sequence)]})[self._output.name]
        if self._output.pooled:
            return finished.float()
        if self._output.join == "stack":
            finished = finished.transpose(1, 2).flatten(2)
        return finished.flatten(0, 1)[beside["counted"]].float()

    def counts(self, number: int) -> list[int]:
        """How many rows of a chunk's output are each prompt's."""
        chunk = self.chunks[number]
        counts: list[int] = chunk.counted.sum(axis=1).tolist()
        return [1] * len(counts) if self._output.pooled else counts

    @torch.inference_mode()
    def _states(self, number: int, sequence: tuple[int, ...], wanted: Set[int], shared: int) -> dict[int, Tensor]:
        """`hidden` of a chunk after each of some numbers of units of `sequence` ran, in one go."""
        beside = self._start(number)
        done, hidden, states = 0, beside["hidden"], {}
        for count in sorted(wanted):
            for length in range(count, done, -1):
                kept = self.cache.get((number, sequence[:length]))
                if kept is not None:
                    done, hidden = length, kept
                    break
            while done < count:
                hidden = self.encoder.sub_block(sequence[done], {**beside, "hidden": hidden})
                self.evaluated += self.chunks[number].size
                done += 1
                if done <= shared:
                    self.cache.put((number, sequence[:done]), hidden)
            states[count] = hidden
        return states

    def _start(self, number: int) -> dict[str, Tensor]:
        """What stands before the first sub-block, and which rows count, `counted`.

        Only the latest chunk's is kept, for chunks are worked off in turn.
        """
        if self._beside is None or self._beside[0] != number:
            chunk = self.chunks[number]
            beside = self.encoder.start(chunk.input_ids, chunk.attention_mask)
            # As numbers: a mask would make a GPU wait at every use, to learn how many rows there are.
            beside["counted"] = torch.from_numpy(chunk.counted.ravel().nonzero()[0]).to(self.encoder.device)
            self._beside = (number, beside)
        return self._beside[1]
