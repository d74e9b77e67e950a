"""The optimizers of the training loop."""

import torch
from torch import nn

from danlu.data.errors import InputError
from danlu.optim import EGDD, Adafactor, LayerDecay, param_groups
from danlu.tasks.encoder import Encoder
from danlu.tasks.settings import LoopSettings, Settings
from danlu.tasks.tricks import Plan

__all__ = ["BETAS", "build_optimizers"]
ENCODER, HEAD = r"^encoder\.", r"^(?!encoder\.)"  # names of the weights of the encoder, and of those above it
BETAS = (0.9, 0.98)  # of both optimizers: short runs want a short memory of squares


def build_optimizers(model: nn.Module, settings: LoopSettings, plan: Plan) -> list[torch.optim.Optimizer]:
    """One optimizer for what every batch touches; SparseAdam for big tables, whose untouched rows then cost nothing.

    Args:
        model: may have `sparse_parameters()`.
        settings: rates and decay.
        plan: rules for rates by name, and which optimizer.

    Returns:
        AdamW, Adafactor or EGDD, and SparseAdam where there are such tables.

    Raises:
        InputError: rates by layer for a model without layers.
    """
    sparse = list(model.sparse_parameters()) if hasattr(model, "sparse_parameters") else []
    taken = {id(p) for p in sparse}
    rules: dict[str, float | LayerDecay] = dict(plan.lr_rules)
    over_transformer = isinstance(getattr(model, "encoder", None), Encoder)
    if over_transformer and isinstance(settings, Settings) and settings.head_rate != 1:
        rules = {name: factor * settings.head_rate for name, factor in plan.lr_rules} | {HEAD: settings.head_rate}
    if plan.layer_decay is not None:
        if not over_transformer:
            raise InputError("layer_decay is for transformers; this model has no layers of that kind; leave it out")
        rules[ENCODER] = LayerDecay(plan.layer_decay)
    name, lr = plan.optimizer or ("adamw", settings.lr)
    groups = param_groups(model, lr, rules=rules, weight_decay=settings.weight_decay, exclude=sparse)
    optimizer: torch.optim.Optimizer
    if name == "adafactor":
        for group in groups:
            group["scale_parameter"] = not group["name"].endswith("no decay")
            if not group["scale_parameter"]:  # vectors, which begin at 0: AdamW's absolute rate
                group["lr"] *= settings.lr / lr
        optimizer = Adafactor(groups, lr=lr)
    elif name == "egdd":
        optimizer = EGDD(groups, lr=lr)
    else:
        fused = all(p.device.type in ("cpu", "cuda") for p in model.parameters() if id(p) not in taken)
        optimizer = torch.optim.AdamW(groups, lr=lr, betas=BETAS, fused=fused)
    optimizers = [optimizer]
    if sparse and isinstance(settings, Settings):
        optimizers.append(torch.optim.SparseAdam(sparse, lr=settings.table_lr, betas=BETAS))
    return optimizers
