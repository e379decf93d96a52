"""Third-party decoders: HiDDeN and Stable Signature, RivaGAN, TorchScript."""
