"""Readers of bits: the keyed extractor (default) and adapters for third-party decoders."""

__all__ = ["KEYED", "LABELS", "MOST_FRAMES", "NO_LABEL"]

KEYED = "keyed"  # the name of the default

MOST_FRAMES = 64  # of a video that are read together; they are in memory at once

# Public labels of keyed watermarks: "none" states nothing, the others are terms of the IPTC's digital source types.
LABELS = (
    "none",
    "trainedAlgorithmicMedia",
    "compositeWithTrainedAlgorithmicMedia",
    "digitalCapture",
    "digitalCreation",
)
NO_LABEL = LABELS[0]
