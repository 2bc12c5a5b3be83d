"""Triton Inference Server: write a bundle as a model repository, and what its models in Python run.

`repository` writes, `config` decides; `serving` and `models/` run inside the server, where torch is not installed.
"""
