"""The keyed extractor: spread spectrum on a periodic tile, with blind synchronisation."""
