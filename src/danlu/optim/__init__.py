"""Optimizer companions: averaged weights, parameter groups, schedules."""

from danlu.optim.accumulation import GradientAccumulation
from danlu.optim.adafactor import Adafactor
from danlu.optim.adam import LAMB, Adam
from danlu.optim.egdd import EGDD
from danlu.optim.ema import EMA, decay_from_half_life, half_life
from danlu.optim.exponentiated_gradient import ExponentiatedGradient, exponentiated_gradient_step
from danlu.optim.lion import Lion, Tiger
from danlu.optim.lookahead import Lookahead
from danlu.optim.param_groups import LayerDecay, param_groups
from danlu.optim.schedule import piecewise_linear
from danlu.optim.sphere_sgd import SphereSGD, normalize_rows_
from danlu.optim.step_size_scale import StepSizeScale
from danlu.optim.zeroth_order import ZerothOrder, zeroth_order_backward

__all__ = [
    "EGDD",
    "EMA",
    "LAMB",
    "Adafactor",
    "Adam",
    "ExponentiatedGradient",
    "GradientAccumulation",
    "LayerDecay",
    "Lion",
    "Lookahead",
    "SphereSGD",
    "StepSizeScale",
    "Tiger",
    "ZerothOrder",
    "decay_from_half_life",
    "exponentiated_gradient_step",
    "half_life",
    "normalize_rows_",
    "param_groups",
    "piecewise_linear",
    "zeroth_order_backward",
]
