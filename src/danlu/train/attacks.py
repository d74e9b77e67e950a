r"""FGM, PGD and noise as objects that find the weights themselves, by name, and know the model's modes.

    loss = FGM(model, epsilon=0.5).backward(loss_fn)      in place of      loss_fn().backward()      (1)

Against the functions they add two things. The weights: "embeddings" asks the model; a pattern that matches nothing, or
a model with several tables and no word on which is the input's, is an error with the names to choose from (a substring
that silently also moves the position table is the classic slip). The attack pass: batch norm would count the batch
twice, so its statistics stand still during that pass; dropout stays as it is unless attack_mode="eval".

Source: kexue.fm/archives/7234 (2020); danlu.train.adversarial has the equations.
Shapes: those of the weights.
"""

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from danlu.train.adversarial import (
    as_list,
    check_epsilon,
    check_mode,
    fgm_backward,
    noise_backward,
    pgd_backward,
)

__all__ = ["FGM", "PGD", "Noise"]


class Attack:
    """What FGM, PGD and Noise share: which weights of the model move, and how the attack pass runs.

    params: "embeddings" (the input embeddings: `get_input_embeddings()`, or the only nn.Embedding there is), a regular
    expression searched in the parameters' names, or the parameters themselves. attack_mode: "train" runs the pass for g
    as training runs, except that batch norm does not count the batch twice; "eval" runs it in evaluation mode, without
    dropout, as the post's code does (recurrent layers of cuDNN cannot). `names` says what was found.
    """

    def __init__(
        self,
        model: nn.Module,
        params: str | Sequence[Tensor] = "embeddings",
        epsilon: float = 0.5,
        mode: str = "adv",
        attack_mode: str = "train",
        reduce: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        if attack_mode not in ("train", "eval"):
            raise ValueError(f"attack_mode must be 'train' or 'eval', got {attack_mode!r}")
        check_epsilon(epsilon, type(self).__name__)
        check_mode(mode)
        self.model, self.epsilon, self.mode, self.attack_mode, self.reduce = model, epsilon, mode, attack_mode, reduce
        found = find_weights(model, params)
        self.names, self.weights = list(found), list(found.values())

    def attack_loss_fn(self, loss_fn: Callable[[], Tensor]) -> Callable[[], Tensor] | None:
        """`loss_fn` as the attack pass runs it; None where the training pass itself gives g."""
        if self.mode == "both" and self.attack_mode == "train":
            return None

        def loss() -> Tensor:
            with attacking(self.model, self.attack_mode):
                return loss_fn()

        return loss


class FGM(Attack):
    """`fgm_backward` on weights found by name: `FGM(model).backward(loss_fn)` in place of `loss_fn().backward()`."""

    def backward(self, loss_fn: Callable[[], Tensor]) -> Tensor:
        """Leave the gradients in .grad and return the loss, as `fgm_backward`."""
        attack = self.attack_loss_fn(loss_fn)
        return fgm_backward(loss_fn, self.weights, self.epsilon, self.mode, self.reduce, attack)


class PGD(Attack):
    """`pgd_backward` on weights found by name; alpha and steps are those of the function."""

    def __init__(
        self,
        model: nn.Module,
        params: str | Sequence[Tensor] = "embeddings",
        epsilon: float = 1.0,
        alpha: float = 0.3,
        steps: int = 3,
        mode: str = "adv",
        attack_mode: str = "train",
        reduce: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        super().__init__(model, params, epsilon, mode, attack_mode, reduce)
        self.alpha, self.steps = alpha, steps

    def backward(self, loss_fn: Callable[[], Tensor]) -> Tensor:
        """Leave the gradients in .grad and return the loss, as `pgd_backward`."""
        attack = self.attack_loss_fn(loss_fn)
        return pgd_backward(loss_fn, self.weights, self.epsilon, self.alpha, self.steps, self.mode, self.reduce, attack)


class Noise(Attack):
    """`noise_backward` on weights found by name; support and generator are those of the function."""

    def __init__(
        self,
        model: nn.Module,
        params: str | Sequence[Tensor] = "embeddings",
        epsilon: float = 0.5,
        mode: str = "adv",
        attack_mode: str = "train",
        reduce: Callable[[Tensor], Tensor] | None = None,
        support: str = "batch",
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__(model, params, epsilon, mode, attack_mode, reduce)
        self.support, self.generator = support, generator

    def backward(self, loss_fn: Callable[[], Tensor]) -> Tensor:
        """Leave the gradients in .grad and return the loss, as `noise_backward`."""
        attack = self.attack_loss_fn(loss_fn)
        return noise_backward(
            loss_fn, self.weights, self.epsilon, self.mode, self.support, self.reduce, attack, self.generator
        )


@contextmanager
def attacking(model: nn.Module, attack_mode: str) -> Iterator[None]:
    """The model as the attack pass runs it; every module's flags are as before on exit."""
    norms = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    flags = [(m, m.training) for m in model.modules()]
    tracked = [(m, m.track_running_stats) for m in norms]
    try:
        if attack_mode == "eval":
            model.eval()
        else:
            for norm in norms:
                norm.track_running_stats = False  # statistics of the batch are used and not kept
        yield
    finally:
        for m, training in flags:
            m.training = training
        for norm, track in tracked:
            norm.track_running_stats = track


def find_weights(model: nn.Module, params: str | Sequence[Tensor]) -> dict[str, Tensor]:
    """The weights that `params` means, by name; nothing found, or no way to choose, is an error that lists them."""
    names = {id(p): name for name, p in model.named_parameters()}
    if not isinstance(params, str):
        return {names.get(id(p), str(i)): p for i, p in enumerate(as_list(params))}
    if params != "embeddings":
        found: dict[str, Tensor] = {name: p for name, p in model.named_parameters() if re.search(params, name)}
        if found:
            return found
        known = list(names.values())
        more = f" and {len(known) - 20} more" if len(known) > 20 else ""
        raise ValueError(f"params={params!r} matches no parameter; the names are {', '.join(known[:20])}{more}")
    if callable(get := getattr(model, "get_input_embeddings", None)):
        weight = get().weight
        return {names.get(id(weight), "embeddings"): weight}
    tables = {id(m.weight): m.weight for m in model.modules() if isinstance(m, nn.Embedding | nn.EmbeddingBag)}
    if len(tables) != 1:
        listed = ", ".join(names[key] for key in tables) or "none"
        raise ValueError(
            f"the model has no get_input_embeddings() and not exactly one embedding layer (found: {listed}); "
            "name the weight by params=, a regular expression"
        )
    return {names[key]: weight for key, weight in tables.items()}
