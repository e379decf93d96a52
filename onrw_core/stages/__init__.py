"""The stages of the paper, one module each: inversion, noise optimisation, constrained denoising, composition."""
