"""Widths that a configuration tells: plans after which the model's own class is made at other sizes."""
