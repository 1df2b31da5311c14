"""Random changes to sounds and spectrograms, and pairs of views of a clip."""
