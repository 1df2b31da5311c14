"""Waveforms to spectrograms, and what is known about their values."""
