"""Models at work: embeddings of stores, windows of recordings, scores."""
