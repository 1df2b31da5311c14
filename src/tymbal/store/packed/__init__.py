"""Stores of packed `.npy` shards."""
