"""ONRW: invisible, robust image watermarking by optimising diffusion inversion noise (arXiv 2601.17388)."""

__version__ = "0.1.0"
