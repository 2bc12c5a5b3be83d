"""TensorRT and TensorRT-RTX: engines for NVIDIA GPUs, built and run through one small interface."""
