"""What can the model do? Graded by lm-evaluation-harness and math-verify."""
