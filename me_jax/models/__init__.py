"""The decoder: configuration, blocks, and the sites where it is read."""
