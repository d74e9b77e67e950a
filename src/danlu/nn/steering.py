r"""A condition for any pretrained model: every norm is made to follow a vector, and can be frozen again at one.

    y = gamma(c) (x - mean) / sqrt(var + eps) + beta(c)        (eq. (4) of `danlu.nn.conditional_norm`)      (1)
    bake        gamma <- gamma(c),  beta <- beta(c)                                                          (2)
    guided      l = l_u + w (l_c - l_u)                                                                      (3)

`add_condition` puts (1) in the place of each norm; the model computes what it did until the new matrices are trained.
`condition` is how the vector reaches norms that know nothing of it. With c fixed (1) is an ordinary norm, so (2) gives
the stock model back. In (3) l_u are the logits without the condition (c = 0 is the pretrained path exactly) and w > 1
exaggerates what the condition changes; it wants a model that was trained with c dropped now and then.

Source: kexue.fm/archives/7124; (3): Ho and Salimans, 2022, arXiv:2207.12598.
Shapes: B sequences, C size of a condition, D features, V classes or tokens.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor, nn

from danlu.math.precision import wide_dtype
from danlu.nn.conditional_norm import Norm

__all__ = ["add_condition", "bake", "condition", "guided_logits"]

_current: ContextVar[Tensor | None] = ContextVar("condition", default=None)


def add_condition(
    model: nn.Module, condition_dim: int, hidden: int | None = None, activation: str | None = "linear"
) -> list[nn.Parameter]:
    """Make every norm of a model follow a condition, in place; its outputs do not change until training.

    Replaced are torch's LayerNorm and RMSNorm, `danlu.nn.Norm` and the RMS norms of transformers (those with `weight`
    and `variance_epsilon`). Gains and shifts stay the same parameters, so an optimizer that holds them keeps working.
    Run the model inside `condition`; outside it raises. Build danlu's own transformers with `condition_size` instead:
    they hand the condition on themselves, also where padding is left out.

    Args:
        model: any module that contains norms.
        condition_dim: size C of the condition.
        hidden: bottleneck between the condition and the gains, one for each norm; None: none.
        activation: after the bottleneck, a name of `danlu.math.activations`.

    Returns:
        The new parameters, for a group of their own with 10 to 100 times the model's learning rate.

    Raises:
        ValueError: no norm is found, one is conditioned already, or one computes something else than its name says.

    >>> model = nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4))
    >>> [tuple(p.shape) for p in add_condition(model, condition_dim=2)]
    [(4, 2), (4, 2)]
    >>> with condition(torch.ones(1, 2)):
    ...     model(torch.zeros(1, 3)).shape
    torch.Size([1, 4])
    """
    found = {name: module for name, module in model.named_modules() if _is_norm(module)}
    if not found or "" in found:
        raise ValueError(
            f"add_condition replaces the norms inside a model; {type(model).__name__} "
            + ("is one itself, wrap it in nn.Sequential" if found else "has none that it knows")
        )
    like = next((p for p in model.parameters() if p.is_floating_point()), torch.zeros(0))
    sizes = {"condition_dim": condition_dim, "condition_hidden": hidden, "condition_activation": activation}
    new = {module: _conditioned(name, module, like, sizes) for name, module in found.items()}
    _exchange(model, new)
    for module in model.modules():
        if isinstance(module, nn.TransformerEncoder):
            module.use_nested_tensor = False  # its fused path reads the norms' weights instead of calling them
    return [p for norm in new.values() for key, p in norm.named_parameters() if key.startswith("cond_")]


@contextmanager
def condition(value: Tensor) -> Iterator[None]:
    """Inside the block the norms made by `add_condition` follow `value`; blocks nest, threads have their own.

    Args:
        value: (B, C), a vector for each sequence of the batch, or (B, T, C), one for each token. Beams and samples
            repeat it with their rows: value.repeat_interleave(k, dim=0).

    Returns:
        A context manager.

    Raises:
        ValueError: value is not a tensor with at least two axes.

    >>> model = nn.Sequential(nn.LayerNorm(2))
    >>> new = add_condition(model, condition_dim=3)
    >>> with condition(torch.ones(1, 3)):
    ...     model(torch.tensor([[1.0, 3.0]])).detach()
    tensor([[-1.0000,  1.0000]])
    """
    if not isinstance(value, Tensor) or value.ndim < 2:
        given = f"shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
        raise ValueError(f"condition needs a tensor (batch, size), got {given}; for one sequence write c[None]")
    token = _current.set(value)
    try:
        yield
    finally:
        _current.reset(token)


def bake(model: nn.Module, value: Tensor) -> nn.Module:
    """Freeze a conditioned model at one condition, in place, eq. (2): its norms are plain again.

    Args:
        model: a module whose norms follow a condition.
        value: (C,) or (1, C).

    Returns:
        The model. What `add_condition` replaced has its own class back and the same names in the state dict as before;
        a norm that had no gain gets one.

    Raises:
        ValueError: no norm of the model follows a condition, or value is more than one vector.

    >>> model = nn.Sequential(nn.LayerNorm(4))
    >>> new = add_condition(model, condition_dim=2)
    >>> type(bake(model, torch.ones(2))[0])
    <class 'torch.nn.modules.normalization.LayerNorm'>
    """
    norms = [module for module in model.modules() if isinstance(module, Norm) and module.condition_dim is not None]
    if not norms:
        raise ValueError(f"no norm of {type(model).__name__} follows a condition, so there is nothing to bake")
    if value.ndim == 2 and len(value) == 1:
        value = value[0]
    if value.ndim != 1:
        raise ValueError(
            f"bake freezes one condition (size,), got {tuple(value.shape)}; bake a copy of the model for each condition"
        )
    with torch.no_grad():
        _exchange(model, {norm: _baked(norm, value) for norm in norms})
    return model


def guided_logits(conditional: Tensor, unconditional: Tensor, weight: float) -> Tensor:
    """Logits that exaggerate what the condition changes, eq. (3).

    Args:
        conditional: (..., V) logits with the condition.
        unconditional: (..., V) logits without it.
        weight: 0 gives the unconditional ones, 1 the conditional ones, more goes beyond.

    Returns:
        (..., V); -inf where either is -inf.

    Raises:
        ValueError: the shapes differ.

    >>> guided_logits(torch.tensor([1.0, -torch.inf]), torch.tensor([0.5, 0.0]), 3.0)  # 0.5 + 3 * 0.5
    tensor([2., -inf])
    """
    if conditional.shape != unconditional.shape:
        raise ValueError(
            f"guided_logits needs two tensors of one shape, got {tuple(conditional.shape)} and "
            f"{tuple(unconditional.shape)}"
        )
    forbidden = conditional.isneginf() | unconditional.isneginf()
    mixed = weight * conditional.masked_fill(forbidden, 0) + (1 - weight) * unconditional.masked_fill(forbidden, 0)
    return mixed.masked_fill(forbidden, -torch.inf)  # eq. (3)


def _is_norm(module: nn.Module) -> bool:
    known = isinstance(module, nn.LayerNorm | nn.RMSNorm | Norm)
    return known or (isinstance(getattr(module, "weight", None), Tensor) and hasattr(module, "variance_epsilon"))


def _conditioned(name: str, old: nn.Module, like: Tensor, sizes: dict[str, Any]) -> Norm:
    """A conditioned norm with the parameters of `old`, which it remembers for `bake`; if it has none, beside `like`."""
    weight, bias = getattr(old, "weight", None), getattr(old, "bias", None)
    like = like if weight is None else weight
    kind: str
    eps: float | None
    shape: tuple[int, ...]
    if isinstance(old, Norm):
        if old.condition_dim is not None:
            raise ValueError(f"{name} follows a condition already; bake(model, c) first, or train the one it has")
        kind, eps, shape = old.kind, old.eps, (old.dim,)
    elif isinstance(old, nn.LayerNorm):
        kind, eps, shape = "layer", old.eps, old.normalized_shape
    elif isinstance(old, nn.RMSNorm):
        kind, eps, shape = "plain_rms" if weight is None else "rms", old.eps, old.normalized_shape
        if eps is None:  # torch takes that of the dtype it computes in
            eps = torch.finfo(wide_dtype(like)).eps
    else:
        kind, eps, shape = "rms", float(old.variance_epsilon), tuple(weight.shape)  # type: ignore[arg-type, union-attr]
    if len(shape) != 1:
        raise ValueError(
            f"{name} normalizes over {len(shape)} axes {tuple(shape)}; add_condition knows norms over the last one"
        )
    norm = Norm(shape[0], kind=kind, eps=eps, **sizes).to(like.device, like.dtype)
    norm.weight, norm.bias = weight, bias
    if bias is None:
        norm.cond_beta = None
    norm.train(old.training)
    if type(old) not in (nn.LayerNorm, nn.RMSNorm, Norm):
        _compare(name, old, norm)
    norm.__dict__["replaced"] = old  # past nn.Module's register: the state dict names each parameter once
    norm.register_forward_pre_hook(_follow, with_kwargs=True)
    return norm


def _follow(norm: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Hands the block's condition to a norm that was called without one."""
    if len(args) > 1 and args[1] is None:
        args = (args[0], _current.get(), *args[2:])
    elif len(args) < 2 and kwargs.get("condition") is None:
        kwargs = {**kwargs, "condition": _current.get()}
    return args, kwargs


@torch.no_grad()
def _compare(name: str, old: nn.Module, norm: Norm) -> None:
    """Refuses a class of somebody else's that computes another function than its attributes promise."""
    like = next(old.parameters())
    x = torch.linspace(-2, 3, 2 * norm.dim, device=like.device, dtype=like.dtype).reshape(1, 2, norm.dim)
    expected = old(x)
    got = norm(x, torch.zeros(1, norm.condition_dim or 0, device=like.device, dtype=like.dtype))
    close = 0.02 if like.dtype in (torch.bfloat16, torch.float16) else 1e-5
    if expected.shape != got.shape or not torch.allclose(got.to(expected.dtype), expected, rtol=close, atol=close):
        raise ValueError(
            f"{name} is a {type(old).__name__} that computes something else than {norm.kind} normalization with weight "
            f"and eps {norm.eps:g}; replace it by a danlu.nn.Norm that fits, then call add_condition"
        )


def _baked(norm: Norm, value: Tensor) -> nn.Module:
    """The norm that `norm` is at one condition."""
    gain, shift = norm.gain_and_shift(value)
    old: nn.Module | None = norm.__dict__.get("replaced")
    plain: nn.Module
    if old is not None and getattr(old, "weight", None) is not None:
        plain = old
    else:
        plain = Norm(norm.dim, kind="layer" if norm.kind == "layer" else "rms", eps=norm.eps)
        if shift is None:
            plain.bias = None
    like = norm.weight if norm.weight is not None else norm.cond_gamma.weight  # type: ignore[union-attr]
    plain.weight = nn.Parameter(gain.to(like.dtype), requires_grad=like.requires_grad)
    if shift is not None and norm.bias is not None:
        plain.bias = nn.Parameter(shift.to(norm.bias.dtype), requires_grad=norm.bias.requires_grad)
    return plain.train(norm.training)


def _exchange(model: nn.Module, new: Mapping[nn.Module, nn.Module]) -> None:
    """Puts new modules at every place where the old ones stand, those of a shared one too."""
    for parent in list(model.modules()):
        for name, child in list(parent._modules.items()):  # named_children would skip a second name of the same module
            if child is not None and child in new:
                setattr(parent, name, new[child])
