"""Data: the schema of a sample, sources, shards and the deterministic loader."""
