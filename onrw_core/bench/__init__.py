"""Benchmarks, such as robustness compared with peers (`robustness`) and speed with the published loop (`speed`)."""
