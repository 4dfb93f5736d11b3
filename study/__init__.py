"""The paper's claims, put to real checkpoints: one command, one page."""
