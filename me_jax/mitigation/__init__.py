"""How rigid massive tokens are relaxed, and what that costs."""
