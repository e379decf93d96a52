"""Benchmarks: robustness beside peers (`robustness`), speed beside the published loop (`speed`)."""
