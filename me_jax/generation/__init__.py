"""Text, a token at a time: a cache, samplers, and rows that are refilled."""
