"""Readers of bits: the keyed extractor (default) and adapters for third-party decoders."""

__all__ = ["KEYED", "LABELS", "NO_LABEL"]

KEYED = "keyed"  # the name of the default

# Public labels of keyed watermarks: "none" states nothing, the others are terms of the IPTC's digital source types.
LABELS = (
    "none",
    "trainedAlgorithmicMedia",
    "compositeWithTrainedAlgorithmicMedia",
    "digitalCapture",
    "digitalCreation",
)
NO_LABEL = LABELS[0]
