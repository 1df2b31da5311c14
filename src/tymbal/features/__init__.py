"""Filter banks, which turn waveforms into spectrograms, and statistics and normalisation of these."""
