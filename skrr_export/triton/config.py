"""The models' configurations, each from what is served."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from skrr_export.manifest import OutputEntry
from skrr_export.pipelines.rows import rearranged
from skrr_export.triton.choices import Serving
from skrr_export.triton.pbtxt import Message, Name, Value, entries

MAX_CHARACTERS = 8192
"""Of a prompt: what is longer no pipeline reads to its end, so it is a client's mistake, or an attack."""
QUEUE_DELAY_MICROSECONDS = 1000
"""How long a request waits for others to share a batch with: little beside an encoder's milliseconds."""

TEXT = "text"
ENCODED = "encoded"
"""Within the ensemble, the encoder's rows of which the pipeline takes some."""


def tokenizer_config(serving: Serving) -> Message:
    """The model that makes ids of prompts; always on the CPU."""
    warmup = {TEXT: _zeros("TYPE_STRING", [*serving.rows, 1])}
    return {
        "name": serving.tokenizer,
        "backend": "python",
        **_common(serving),
        "input": [_text(serving)],
        "output": [_ids(serving, name) for name in ("input_ids", "attention_mask")],
        "instance_group": [{"count": 1, "kind": Name("KIND_CPU")}],
        **_batching(serving, delay=0),
        "parameters": _parameters({"max_characters": MAX_CHARACTERS}),
        "model_warmup": [_warmup(1, warmup)],
    }


def encoder_config(serving: Serving) -> Message:
    """The model that encodes ids."""
    return {
        "name": serving.encoder,
        "backend": serving.backend,
        "default_model_filename": serving.file,
        **_common(serving),
        "input": [_ids(serving, name) for name in serving.manifest.inputs],
        "output": [_embedding(serving, entry) for entry in serving.manifest.outputs],
        "instance_group": [_encoder_group(serving)],
        **_batching(serving, delay=QUEUE_DELAY_MICROSECONDS),
        "parameters": _encoder_parameters(serving),
        "model_warmup": _encoder_warmup(serving),
    }


def finisher_config(serving: Serving) -> Message:
    """The model that takes of the encoder's rows what the pipeline does; always on the CPU."""
    rows = serving.manifest.rows
    assert serving.finisher is not None
    assert rows is not None
    # To warm up there is nothing: it is a copy.
    return {
        "name": serving.finisher,
        "backend": "python",
        **_common(serving),
        "input": [_embedding(serving, rows), _ids(serving, "attention_mask")],
        "output": _finished(serving, rows),
        "instance_group": [{"count": 1, "kind": Name("KIND_CPU")}],
        **_batching(serving, delay=0),
    }


def ensemble_config(serving: Serving) -> Message:
    """The model that clients call: prompts in, embeddings and the masks that a denoiser needs out.

    The ids are no output: Triton would leave the tokenizer out where a client asks for none of its outputs, though the
    encoder needs them, were all of them outputs of the ensemble.
    """
    outputs = [_embedding(serving, entry) for entry in serving.manifest.outputs]
    encoded = _same([entry.output.name for entry in serving.manifest.outputs])
    steps = [
        (serving.tokenizer, _same([TEXT]), _same(["input_ids", "attention_mask"])),
        (serving.encoder, _same(serving.manifest.inputs), encoded),
    ]
    rows = serving.manifest.rows
    if serving.finisher is not None and rows is not None:
        encoded[rows.output.name] = ENCODED
        taken, *masks = _finished(serving, rows)
        outputs = [taken, *outputs[1:], *masks]
        made = _same([str(output["name"]) for output in (taken, *masks)])
        steps.append((serving.finisher, {rows.output.name: ENCODED, **_same(["attention_mask"])}, made))
    return {
        "name": serving.name,
        "platform": "ensemble",
        **_common(serving),
        "input": [_text(serving)],
        "output": [*outputs, _ids(serving, "attention_mask")],
        "ensemble_scheduling": {"step": [_step(*step) for step in steps]},
    }


def _encoder_group(serving: Serving) -> Message:
    group: dict[str, Value] = {"count": serving.instances}
    if serving.device == "cpu":
        return {**group, "kind": Name("KIND_CPU")}
    if serving.backend == "python":
        group["gpus"] = [0]  # ONNX Runtime in Python takes the first; the other backends go to all
    return {**group, "kind": Name("KIND_GPU")}


def _encoder_parameters(serving: Serving) -> list[Message]:
    parameters: dict[str, object] = {}
    if serving.backend == "python":
        parameters["check_hashes"] = "true"
    if serving.threads is not None:
        parameters["intra_op_thread_count"] = serving.threads
    return _parameters(parameters)


def _encoder_warmup(serving: Serving) -> list[Message]:
    """At full length; the largest batch takes a GPU's memory at once, or fails. On a CPU that would take minutes."""
    dims = [*serving.rows, serving.longest]
    inputs = {name: _zeros("TYPE_INT64", dims) for name in serving.manifest.inputs}
    batches = {1, serving.max_batch or 1} if serving.device == "cuda" else {1}
    return [_warmup(batch, inputs) for batch in sorted(batches)]


def _common(serving: Serving) -> Message:
    return {"max_batch_size": serving.max_batch, "version_policy": {"latest": {"num_versions": 1}}}


def _text(serving: Serving) -> Message:
    return _tensor(TEXT, "TYPE_STRING", [*serving.rows, 1])


def _ids(serving: Serving, name: str) -> Message:
    return _tensor(name, "TYPE_INT64", [*serving.rows, serving.length])


def _embedding(serving: Serving, entry: OutputEntry, length: int | None = None) -> Message:
    """An output of the encoder, of so many rows; by default one a token."""
    kind = f"TYPE_{serving.dtype.name.upper()}"
    sizes = {"sequence": serving.length if length is None else length}
    dims = [size if isinstance(size, int) else sizes[size] for size in entry.shape[1:]]
    return _tensor(entry.output.name, kind, [*serving.rows, *dims])


def _finished(serving: Serving, rows: OutputEntry) -> list[Message]:
    """The rows that the pipeline takes, and their mask where it is not the tokens'."""
    length = serving.finished_length
    mask = _tensor("output_mask", "TYPE_INT64", [*serving.rows, length])
    return [_embedding(serving, rows, length), *([mask] if rearranged(serving.manifest.pipeline) else [])]


def _tensor(name: str, kind: str, dims: Sequence[int]) -> Message:
    return {"name": name, "data_type": Name(kind), "dims": dims}


def _zeros(kind: str, dims: Sequence[int]) -> Message:
    """Zero is a token, and a mask; of text it is the empty prompt."""
    return {"data_type": Name(kind), "dims": dims, "zero_data": True}


def _batching(serving: Serving, delay: int) -> Message:
    if serving.max_batch < 2:
        return {}
    preferred = [1 << power for power in range(1, serving.max_batch.bit_length())]
    sizes = sorted({*preferred, serving.max_batch})
    return {"dynamic_batching": {"preferred_batch_size": sizes, "max_queue_delay_microseconds": delay}}


def _parameters(parameters: Mapping[str, object]) -> list[Message]:
    return entries({name: {"string_value": str(value)} for name, value in parameters.items()})


def _warmup(batch: int, inputs: Mapping[str, Message]) -> Message:
    return {"name": f"batch of {batch}", "batch_size": batch, "inputs": entries(inputs)}


def _same(names: Sequence[str]) -> dict[str, str]:
    """Tensors that a model and the ensemble call the same."""
    return {name: name for name in names}


def _step(model: str, inputs: Mapping[str, str], outputs: Mapping[str, str]) -> Message:
    """A call of a model, by the ensemble's names of its tensors."""
    return {
        "model_name": model,
        "model_version": -1,
        "input_map": entries(inputs),
        "output_map": entries(outputs),
    }
