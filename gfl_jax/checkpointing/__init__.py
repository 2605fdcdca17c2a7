"""Checkpoints of a run, written by orbax and read back."""
