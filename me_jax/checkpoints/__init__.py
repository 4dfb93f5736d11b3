"""Weights in and out: checkpoints become parameter trees, and these folders.

Start at `load.py`. What a file holds is read by `safetensors.py` and `gguf.py`
as `tensors.StoredTensor`s; `names.py` says which of them each parameter comes
from; `assemble.py` reads, checks and places them. `orbax.py` keeps a model
between runs and `orbax_open.py` reads it back; `export.py` writes what Hugging
Face's libraries load.
"""
