"""Relaxes massive activations: WeMask, what it costs, and gates to train."""
