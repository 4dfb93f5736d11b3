"""Relaxes massive activations: WeMask without training, and what it costs."""
