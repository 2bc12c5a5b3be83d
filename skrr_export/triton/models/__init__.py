"""The models in Python, each copied into the repository as its `model.py`."""
