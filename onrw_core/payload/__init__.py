"""Payload of a watermark: messages, error correction, keys, the registry of ids."""
