"""Export a T5 encoder to ONNX with optimum-onnx: `python optimum_onnx.py CHECKPOINT OUT_DIR`.

The command line of optimum exports a T5 checkpoint as a sequence-to-sequence model, with its decoder; the encoder on
its own is what it exports for image pipelines, with the configuration used here. That one takes no attention mask.
"""

import sys
from pathlib import Path

from optimum.exporters.onnx import export
from optimum.exporters.onnx.model_configs import T5EncoderOnnxConfig
from transformers import T5EncoderModel


def main() -> None:
    """Command line."""
    checkpoint, output = sys.argv[1], Path(sys.argv[2])
    output.mkdir(parents=True, exist_ok=True)
    model = T5EncoderModel.from_pretrained(checkpoint)
    config = T5EncoderOnnxConfig(model.config, task="feature-extraction")
    export(model, config, output / "model.onnx")


if __name__ == "__main__":
    main()
