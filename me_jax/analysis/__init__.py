"""Where massive activations come from, and why."""
