"""Spectrograms in a `.pt` file each."""
