"""Figures of what the analyses found."""
