"""Doors to other people's checkpoints: their names and layouts to ours, and back."""
