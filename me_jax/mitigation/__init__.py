"""How massive tokens are relaxed: the leaves of `models/sink.py`, filled."""
