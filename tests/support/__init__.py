"""Models whose answers are known, for the tests."""
