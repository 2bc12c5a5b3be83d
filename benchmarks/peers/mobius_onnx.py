"""Export a T5 encoder to ONNX with mobius-onnx: `python mobius_onnx.py CHECKPOINT OUT_DIR`.

mobius knows T5 as a sequence-to-sequence model only, so its task builds the graphs of an encoder and a decoder. The
decoder is dropped here before it is optimised and before weights are loaded: a checkpoint of the encoder has none for
it. The encoder's graph declares an attention mask and does not use it.
"""

import sys

from mobius import ArchitectureConfig, ModelPackage, build
from mobius.tasks import Seq2SeqTask
from onnxscript import nn


class EncoderTask(Seq2SeqTask):  # type: ignore[misc]
    """The encoder's half of the sequence-to-sequence task."""

    def build(self, module: nn.Module, config: ArchitectureConfig) -> ModelPackage:
        """Build both graphs, as mobius does, and keep the encoder's."""
        package = super().build(module, config)
        del package["decoder"]
        return package


def main() -> None:
    """Command line."""
    checkpoint, output = sys.argv[1:]
    build(checkpoint, task=EncoderTask()).save(output, progress_bar=False)


if __name__ == "__main__":
    main()
