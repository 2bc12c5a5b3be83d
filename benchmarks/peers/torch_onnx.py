"""Export a T5 encoder of transformers with `torch.onnx.export`: `python torch_onnx.py CHECKPOINT OUT_DIR`."""

import sys
from pathlib import Path

import torch
from transformers import T5EncoderModel


def main() -> None:
    """Command line."""
    checkpoint, output = sys.argv[1], Path(sys.argv[2])
    output.mkdir(parents=True, exist_ok=True)
    # With the default, `sdpa`, torch 2.13 fails to decompose what it traced: "Cannot view a tensor with shape ...".
    model = T5EncoderModel.from_pretrained(checkpoint, attn_implementation="eager")
    # No dimension of the examples is 1: tracing would take it for a constant.
    ids = torch.arange(2 * 77).reshape(2, 77)
    mask = torch.ones(2, 77, dtype=torch.int64)
    dimensions = {0: torch.export.Dim("batch"), 1: torch.export.Dim("sequence")}
    program = torch.onnx.export(
        model,
        kwargs={"input_ids": ids, "attention_mask": mask},
        input_names=["input_ids", "attention_mask"],
        output_names=["last_hidden_state"],
        dynamic_shapes={"input_ids": dimensions, "attention_mask": dimensions},
        dynamo=True,
    )
    assert program is not None
    program.save(output / "model.onnx", external_data=True)


if __name__ == "__main__":
    main()
