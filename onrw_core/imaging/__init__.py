"""Images as tensors and files: reading, writing, metrics, geometry, convolution, rounding."""
