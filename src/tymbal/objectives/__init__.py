"""Pretraining objectives, one file each, and their masks."""
