"""Checkpoints that are pruned file by file, without ever holding the model."""
