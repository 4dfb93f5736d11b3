"""Weights in: checkpoints of every supported format become parameter trees.

Start at `load.py`. What a file holds is read by `safetensors.py` and `gguf.py`
as `tensors.StoredTensor`s; `names.py` says which of them each parameter comes
from; `assemble.py` reads, checks and places them.
"""
