"""ONNX: the graph that is the plan, over the bundle's weights file, and ONNX Runtime to run it."""
