"""Optimizer companions: averaged weights, parameter groups, schedules."""

from danlu.optim.ema import EMA, decay_from_half_life, half_life
from danlu.optim.param_groups import LayerDecay, param_groups
from danlu.optim.schedule import piecewise_linear

__all__ = ["EMA", "LayerDecay", "decay_from_half_life", "half_life", "param_groups", "piecewise_linear"]
