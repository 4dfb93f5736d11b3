"""Losses of texts, preferences and rewards, for training any leaf."""
