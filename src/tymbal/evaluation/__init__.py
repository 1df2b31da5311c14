"""Evaluates what a model has learned: a plain baseline, linear probes and nearest neighbours on its embeddings."""
