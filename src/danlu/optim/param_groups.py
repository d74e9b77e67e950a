r"""Parameter groups from name patterns: a fast CRF on a slow encoder, layer decay, and weights without decay.

    lr(theta) = eta * factor of the first rule whose pattern is found in the name, else eta      (1)
    factor_l  = xi^(L - l)      l = 1 ... L for the layers, 0 for the embeddings                 (2)

eta is the base rate; eq. (2) is LayerDecay(xi) over L layers, the embeddings slowest. Under Adam a group with rate
lambda eta does what the reparametrisation theta = lambda theta' does with rate eta (then Adam's epsilon counts as
epsilon / lambda); under SGD that reparametrisation multiplies the rate by lambda^2, a group by lambda.
Decoupled decay shrinks a weight by lr * weight_decay a step, so a factor of 100 decays 100 times faster: transitions
of a CRF are therefore excluded by default, besides biases, norms and every vector and scalar.
bert4keras multiplies the factors of all patterns that match a weight; here the first alone counts.

Source: kexue.fm/archives/7196 (2020) and 6418; layer decay: Clark et al., 2020, arXiv:2003.10555.
Shapes: none.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

__all__ = ["LayerDecay", "param_groups"]


@dataclass(frozen=True)
class LayerDecay:
    """A rule whose factor falls from the top layer (1) to the embeddings (rate^L), eq. (2).

    rate: xi, in (0, 1]. pattern: regular expression whose group 1 is the layer's number, counted from 0. embeddings:
    regular expression of the weights below the first layer. What the rule matches and neither pattern finds (a final
    norm, a pooler) keeps factor 1.
    """

    rate: float
    pattern: str = r"(?:layers?|blocks?|\bh)\.(\d+)\."
    embeddings: str = r"embed|wte|wpe"

    def __post_init__(self) -> None:
        if not 0 < self.rate <= 1:
            raise ValueError(f"LayerDecay needs a rate in (0, 1], got {self.rate}; usual are 0.8 to 0.95")
        if re.compile(self.pattern).groups < 1:
            raise ValueError(
                f"LayerDecay's pattern needs a group around the layer's number, as in r'layers\\.(\\d+)\\.'; "
                f"got {self.pattern!r}"
            )


def param_groups(
    model: nn.Module,
    lr: float,
    rules: Mapping[str, float | LayerDecay] | None = None,
    weight_decay: float = 0.01,
    no_decay: Sequence[str] | None = ("bias", "norm", "transition"),
    exclude: Iterable[nn.Parameter] = (),
) -> list[dict[str, Any]]:
    """The trainable parameters as groups for any torch optimizer, each parameter in exactly one.

    Args:
        model: the module whose named parameters are grouped; frozen ones are left out.
        lr: base rate eta of eq. (1), > 0.
        rules: {regular expression: factor or LayerDecay}, searched in the parameter's names in this order, first match
            wins; so the narrower pattern stands first. Factor 0 holds the weights still.
        weight_decay: decay of the groups that decay, >= 0.
        no_decay: regular expressions (upper and lower case alike) of weights without decay; vectors and scalars are
            always without. None decays everything.
        exclude: parameters in no group, because another optimizer has them.

    Returns:
        Dicts with "params", "lr", "weight_decay" and "name", in the order of the model.

    Raises:
        ValueError: a rule that no parameter falls under, a negative number, or no trainable parameter.

    >>> model = nn.ModuleDict({"encoder": nn.Linear(2, 2), "crf": nn.Linear(2, 2, bias=False)})
    >>> [(g["name"], g["lr"], g["weight_decay"]) for g in param_groups(model, 1.0, {"crf": 100})]
    [('base', 1.0, 0.01), ('base, no decay', 1.0, 0.0), ('crf', 100.0, 0.01)]
    """
    rules = dict(rules or {})
    if not lr > 0 or not weight_decay >= 0:
        raise ValueError(f"param_groups needs lr > 0 and weight_decay >= 0, got lr={lr}, weight_decay={weight_decay}")
    for pattern, rule in rules.items():
        if not isinstance(rule, LayerDecay) and not rule >= 0:
            raise ValueError(f"the factor of rule {pattern!r} must be >= 0, got {rule}; 0 holds these weights still")
    names = all_names(model)
    taken = {key: next((p for p in rules if matches(p, found)), None) for key, found in names.items()}  # eq. (1)
    check_every_rule_is_used(list(rules), names, taken)
    layers = {p: count_layers(p, r, names, taken) for p, r in rules.items() if isinstance(r, LayerDecay)}

    left_out = {id(p) for p in exclude}
    groups: dict[str, dict[str, Any]] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad or id(parameter) in left_out:
            continue
        key = taken[id(parameter)] or "base"
        rule = rules.get(key, 1.0)
        if isinstance(rule, LayerDecay):
            group, factor = layer_of(rule, key, name, layers[key])  # eq. (2)
        else:
            group, factor = key, float(rule)
        spared = parameter.ndim < 2 or any(matches(p, names[id(parameter)], re.IGNORECASE) for p in no_decay or ())
        decays = no_decay is None or not spared
        group += "" if decays else ", no decay"
        entry = {"params": [], "lr": lr * factor, "weight_decay": weight_decay if decays else 0.0, "name": group}
        groups.setdefault(group, entry)["params"].append(parameter)
    if not groups:
        raise ValueError("param_groups found no trainable parameter; unfreeze some (requires_grad) or shorten exclude=")
    return list(groups.values())


def all_names(model: nn.Module) -> dict[int, list[str]]:
    """Every name of every parameter; a tied weight has several, and a rule may mean any of them."""
    names: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), []).append(name)
    return names


def matches(pattern: str, names: Sequence[str], flags: int = 0) -> bool:
    return any(re.search(pattern, name, flags) for name in names)


def check_every_rule_is_used(rules: Sequence[str], names: dict[int, list[str]], taken: dict[int, str | None]) -> None:
    """A rule without effect is a slip of the pen: say which, and what there is."""
    for pattern in rules:
        if pattern in taken.values():
            continue
        hit = next((key for key, found in names.items() if matches(pattern, found)), None)
        if hit is not None:
            raise ValueError(
                f"rule {pattern!r} comes too late: {names[hit][0]!r} and all else it matches fall under earlier rules "
                f"({taken[hit]!r}); put the narrower pattern first"
            )
        known = [found[0] for found in names.values()]
        more = f" and {len(known) - 20} more" if len(known) > 20 else ""
        raise ValueError(f"rule {pattern!r} matches no parameter; the names are {', '.join(known[:20])}{more}")


def count_layers(key: str, rule: LayerDecay, names: dict[int, list[str]], taken: dict[int, str | None]) -> int:
    """L of eq. (2): one more than the highest layer number among the names under the rule."""
    under = [name for i, found in names.items() if taken[i] == key for name in found[:1]]
    numbers = [int(m.group(1)) for name in under if (m := re.search(rule.pattern, name))]
    if not numbers:
        raise ValueError(
            f"LayerDecay of rule {key!r} finds no layer number by {rule.pattern!r} in {', '.join(under[:5])} ...; "
            "give LayerDecay(rate, pattern=...) with a group around the number"
        )
    return max(numbers) + 1


def layer_of(rule: LayerDecay, key: str, name: str, layers: int) -> tuple[str, float]:
    """Group name and factor of one weight under a LayerDecay rule, eq. (2)."""
    found = re.search(rule.pattern, name)
    if found:
        number = int(found.group(1))
        return f"{key} layer {number}", rule.rate ** (layers - number - 1)
    if re.search(rule.embeddings, name):
        return f"{key} embeddings", rule.rate**layers
    return key, 1.0
