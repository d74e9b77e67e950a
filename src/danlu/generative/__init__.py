"""Generative models: autoencoders, flows, adversarial and energy-based ones. Empty so far."""
