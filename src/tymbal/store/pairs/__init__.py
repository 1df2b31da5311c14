"""Pairs of views in a `.pt` file each."""
