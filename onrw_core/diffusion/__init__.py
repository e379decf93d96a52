"""Diffusion models: the ODE, the model interfaces, attention, checkpointing, backends."""
