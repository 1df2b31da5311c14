"""Spectrograms on disk, and back as batches."""
