"""What the model's own Python asks of a plan: integer equations, conflicts, and factors folded into weights."""
