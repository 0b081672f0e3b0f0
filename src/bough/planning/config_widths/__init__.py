"""Widths that a configuration sets: plans after which the model's own class is made at other sizes."""
