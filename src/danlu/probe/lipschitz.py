r"""Certificates: how far the outputs of a network can move when its input moves, from above and from below.

    |f|_L = sup ||f(a) - f(b)|| / ||a - b||                                          (1)
    max_x ||J(x)||  <=  |f|_L  <=  prod_l C_l                                        (2)
    a residual block x + g(x):  1 + |g|_L                                            (3)
    radius(x) = (z_t - max_{k != t} z_k) / (sqrt(2) |f|_L)                           (4)

J is the Jacobian, C_l the constant of a layer alone (`danlu.probe._layer_bounds`), for convolutions the true norm from
above and not that of the reshaped kernel. Within the radius of (4) no change of x in L2 changes the class t: a margin
moves by sqrt(2) |f|_L times the change at most. The product is loose, often by a factor of ten and more, because the
worst directions of the layers do not meet; the lower bound stands beside it and tells how loose.

Everything is computed in evaluation mode, which is restored. Dot-product attention has no constant over all inputs, and
an embedding has tokens for inputs: start behind it, and say by `rules` what other modules do.

Source: kexue.fm/archives/6051; Tsuzuku, Sato, Sugiyama, 2018, arXiv:1802.04034, for (4).
Shapes: N inputs, C classes.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from danlu.probe._layer_bounds import layer_bound

__all__ = [
    "LayerBound",
    "LipschitzReport",
    "certified_radius",
    "lipschitz_bound",
    "lipschitz_report",
    "local_lipschitz",
]

Bound = Callable[[nn.Module], float]
Rules = Mapping[type[nn.Module], Callable[[Any, Bound], float]]


@dataclass(frozen=True)
class LayerBound:
    """One layer: its constant, and what is usually taken for it where that is another number."""

    name: str
    kind: str
    bound: float
    usual: float | None = None
    remark: str = ""


@dataclass(frozen=True)
class LipschitzReport:
    """Both sides of eq. (2). str() is a table."""

    layers: tuple[LayerBound, ...]
    upper: float
    lower: float
    local: Tensor  # (N,) ||J(x)||, in float32 or better

    def __str__(self) -> str:
        rows = [f"{x.name:<16} {x.kind:<18} {x.bound:12.4g}" + (f"  (usual value {x.usual:.4g})" if x.usual else "")
                + (f"  {x.remark}" if x.remark else "") for x in self.layers]  # fmt: skip
        rows += [f"{'product':<35} {self.upper:12.4g}", f"{'Jacobian':<35} {self.lower:12.4g}"]
        return "\n".join(rows)


def lipschitz_bound(model: nn.Module, input_shape: tuple[int, ...], rules: Rules | None = None) -> list[LayerBound]:
    """The constants of the layers of a Sequential, whose product is the upper bound of eq. (2).

    Args:
        model: a layer, or an nn.Sequential of layers and Sequentials.
        input_shape: of one input, without batch.
        rules: module class -> function(module, bound) that returns its constant; bound(inner) is that of a module
            inside that the forward calls. Eq. (3): {Residual: lambda m, bound: 1 + bound(m.g)}.

    Returns:
        One `LayerBound` a layer in order; the product of their bounds holds for evaluation mode and the L2 norm.

    Raises:
        ValueError: a module without a known constant.

    >>> model = nn.Sequential(nn.Linear(2, 2, bias=False), nn.Sigmoid())
    >>> model[0].weight.data = torch.tensor([[3.0, 0.0], [4.0, 5.0]])
    >>> [round(layer.bound, 4) for layer in lipschitz_bound(model, (2,))]
    [6.7082, 0.25]
    """
    rules = dict(rules or {})
    shapes: dict[nn.Module, set[tuple[int, ...]]] = {}  # of its inputs; a layer may stand in several places
    names = {module: name for name, module in model.named_modules()}
    like = next((p for p in model.parameters() if p.is_floating_point()), torch.zeros(0))

    def seen(module: nn.Module, args: tuple[Any, ...]) -> None:
        if args and isinstance(args[0], Tensor):
            shapes.setdefault(module, set()).add(tuple(args[0].shape))

    def layers_of(module: nn.Module) -> Iterator[LayerBound]:
        kind, name = type(module), names[module]
        rule = next((rules[c] for c in kind.__mro__ if c in rules), None)
        if rule is not None:
            yield LayerBound(name, kind.__name__, float(rule(module, bound)), remark="by rule")
        elif isinstance(module, nn.Sequential):
            for layer in module:
                yield from layers_of(layer)
        else:
            found = [layer_bound(module, shape) for shape in shapes.get(module, ())]
            known = [x for x in found if x is not None]
            if not known:
                raise ValueError(
                    f"no constant is known for {name or 'the model'} ({kind.__name__}); if it has one, give "
                    f"rules={{{kind.__name__}: lambda module, bound: ...}}. Attention and embeddings have none: begin "
                    "behind them"
                )
            yield LayerBound(name, kind.__name__.removeprefix("Parametrized"), *max(known, key=lambda x: x[0]))

    def bound(module: nn.Module) -> float:
        return math.prod(layer.bound for layer in layers_of(module))

    hooks = [module.register_forward_pre_hook(seen) for module in names]
    try:
        with evaluating(model), torch.no_grad():
            model(torch.zeros(1, *input_shape, dtype=like.dtype, device=like.device))
            return list(layers_of(model))
    finally:
        for hook in hooks:
            hook.remove()


def local_lipschitz(
    model: Callable[[Tensor], Tensor], x: Tensor, steps: int = 30, generator: torch.Generator | None = None
) -> Tensor:
    """The largest singular value of the Jacobian at each input, from below: power iteration by products with J and J^T.

    Args:
        model: takes (N, ...) and treats each row alone; a module is put into evaluation mode for the call.
        x: (N, ...) inputs, float32 or better.
        steps: of power iteration.
        generator: source of the first directions; by default always the same.

    Returns:
        (N,) ||J(x_i) v_i|| for unit vectors v_i: never above ||J(x_i)||, up to rounding.

    Raises:
        ValueError: x is not a float tensor with a batch, or steps < 0.

    >>> local_lipschitz(lambda x: 3 * x.square(), torch.tensor([[1.0], [2.0]]))  # 6 |x|
    tensor([ 6., 12.])
    """
    if x.ndim < 2 or x.dtype not in (torch.float32, torch.float64) or steps < 0:
        raise ValueError(
            f"local_lipschitz needs x (N, ...) in float32 or float64 and steps >= 0, got {tuple(x.shape)} "
            f"{x.dtype}, steps={steps}"
        )
    generator = torch.Generator().manual_seed(0) if generator is None else generator
    x = x.detach()
    v = each_unit(torch.randn(x.shape, generator=generator, device=generator.device).to(x))
    with evaluating(model), torch.no_grad():
        transposed = torch.func.vjp(model, x)[1]
        for _ in range(steps):
            image = torch.func.jvp(model, (x,), (v,))[1]
            back = transposed(each_unit(image))[0]
            found = back.flatten(1).any(dim=1).view(-1, *[1] * (x.ndim - 1))
            v = torch.where(found, each_unit(back), v)
        return torch.linalg.vector_norm(torch.func.jvp(model, (x,), (v,))[1].flatten(1), dim=1)  # eq. (2)


def lipschitz_report(model: nn.Module, x: Tensor, rules: Rules | None = None, steps: int = 30) -> LipschitzReport:
    """Both sides of eq. (2): the product over the layers, and the largest Jacobian norm at given inputs.

    Args:
        model: as `lipschitz_bound` takes it.
        x: (N, ...) inputs to look at.
        rules: as `lipschitz_bound` takes them.
        steps: of power iteration, see `local_lipschitz`.

    Returns:
        A `LipschitzReport`; the network's constant lies between its lower and its upper.

    Raises:
        ValueError: as `lipschitz_bound` and `local_lipschitz`.

    >>> model = nn.Sequential(nn.Linear(2, 2, bias=False), nn.ReLU())
    >>> model[0].weight.data = torch.eye(2) * 3
    >>> report = lipschitz_report(model, torch.tensor([[1.0, 1.0]]))
    >>> round(report.lower, 4), round(report.upper, 4)
    (3.0, 3.0)
    """
    layers = lipschitz_bound(model, tuple(x.shape[1:]), rules)
    local = local_lipschitz(model, x, steps)
    return LipschitzReport(tuple(layers), math.prod(layer.bound for layer in layers), local.max().item(), local)


def certified_radius(logits: Tensor, bound: float, target: Tensor | None = None) -> Tensor:
    """How far each input may move in L2 without changing its class, eq. (4).

    Args:
        logits: (N, C) outputs of a network.
        bound: an upper bound of its Lipschitz constant, > 0.
        target: (N,) int64 true classes, which give 0 where the network is wrong; None: the predicted ones.

    Returns:
        (N,), dtype of the logits.

    Raises:
        ValueError: logits are not (N, C) with C >= 2, target is not (N,), or bound is not > 0.

    >>> certified_radius(torch.tensor([[3.0, 1.0, 0.0]]), bound=2.0)  # 2 / (sqrt(2) 2)
    tensor([0.7071])
    """
    if (
        logits.ndim != 2
        or logits.shape[1] < 2
        or not bound > 0
        or (target is not None and target.shape != logits.shape[:1])
    ):
        given = None if target is None else tuple(target.shape)
        raise ValueError(
            f"certified_radius needs logits (N, C) with C >= 2, bound > 0 and target (N,); got {tuple(logits.shape)}, "
            f"{bound} and {given}"
        )
    t = logits.argmax(1) if target is None else target
    right = logits.gather(1, t[:, None])[:, 0]
    other = logits.scatter(1, t[:, None], -torch.inf).amax(1)
    return ((right - other) / (math.sqrt(2) * bound)).clamp_min(0)  # eq. (4)


def each_unit(x: Tensor) -> Tensor:
    """Each row at length 1; 0 stays 0."""
    length = torch.linalg.vector_norm(x.flatten(1), dim=1).clamp_min(1e-30)
    return x / length.view(-1, *[1] * (x.ndim - 1))


@contextmanager
def evaluating(model: object) -> Iterator[None]:
    """Every module in evaluation mode inside the block, then each in the mode it had."""
    modules = list(model.modules()) if isinstance(model, nn.Module) else []
    modes = [module.training for module in modules]
    try:
        for module in modules:
            module.training = False
        yield
    finally:
        for module, mode in zip(modules, modes, strict=True):
            module.training = mode
