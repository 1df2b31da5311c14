"""Labelling recordings with a model: which window comes next, what was answered, and how much is known by now."""
