"""What a model knows: a plain baseline, linear probes and nearest neighbours on its embeddings."""
