"""The encoder, its heads, its model folder, and the doors to other people's checkpoints."""
