"""The text format, read back by protobuf."""

from __future__ import annotations

from google.protobuf import text_format
from hypothesis import given
from hypothesis import strategies as st
from tritonclient.grpc.model_config_pb2 import ModelConfig

from skrr_export.triton.pbtxt import Name, entries, to_text


def parse(text: str) -> ModelConfig:
    return text_format.Parse(text, ModelConfig())


@given(st.text(), st.integers(-(2**31), 2**31 - 1), st.dictionaries(st.text(), st.text()))
def test_what_is_written_is_read_back(text: str, number: int, mapping: dict[str, str]) -> None:
    message = {"name": text, "max_batch_size": number, "metric_tags": entries(mapping)}
    parsed = parse(to_text(message))
    assert (parsed.name, parsed.max_batch_size, dict(parsed.metric_tags)) == (text, number, mapping)


def test_messages_nest_and_fields_repeat() -> None:
    tensor = {"name": "x", "data_type": Name("TYPE_INT64"), "dims": [2, -1]}
    text = to_text({"input": [tensor, tensor], "optimization": {"eager_batching": True}})
    assert text.startswith('input {\n  name: "x"\n  data_type: TYPE_INT64\n  dims: 2\n  dims: -1\n}\ninput {\n')
    parsed = parse(text)
    assert [list(each.dims) for each in parsed.input] == [[2, -1], [2, -1]]
    assert parsed.optimization.eager_batching
