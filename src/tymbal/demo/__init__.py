"""The whole way in minutes, on wingbeats that are synthesised on the spot or on a folder of one's own."""
