"""A model folder behind HTTP. Empty so far."""
