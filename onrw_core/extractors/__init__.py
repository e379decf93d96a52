"""Readers of bits: the keyed extractor (default) and adapters for others' decoders."""
