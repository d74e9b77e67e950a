r"""EMA: train with the weights that jump about, evaluate and ship their running average.

    Theta_n = a_n Theta_{n-1} + (1 - a_n) theta_n                                    (1)
    a_n = a,   with warm-up  a_n = min(a, (1 + n) / (10 + n))                        (2)
    average = Theta_n / (1 - a_1 a_2 ... a_n)        (start at zero only)            (3)

theta_n are the weights after step n, Theta the average, a the decay. The path of the optimizer does not change: this
is no momentum. The average forgets half of its past in ln 2 / -ln a steps, about 0.7 / (1 - a). The post starts the
average from a copy of the weights (init="copy"); bert4keras starts it at zero and corrects by eq. (3) (init="zero").
The two differ: weights 1, 2, 4 with a = 0.9 give 1.39 and 2.439.

The average is kept in float32 even when the weights are bfloat16: with a = 0.999 the steps (1 - a)(theta - Theta)
lie below bfloat16's resolution and the average would stand still.

Source: kexue.fm/archives/6575 (2019); Polyak, Juditsky, 1992; bojone/bert4keras, optimizers.py.
Shapes: those of the parameters.
"""

import math
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from danlu.math.precision import wide_dtype

__all__ = ["EMA", "decay_from_half_life", "half_life"]

NUM_UPDATES, DECAY_PRODUCT, AVERAGE = "num_updates", "decay_product", "average."


def half_life(decay: float) -> float:
    """The number of updates after which a weight's share in the average has halved, ln 2 / -ln decay.

    Args:
        decay: a of eq. (1), in (0, 1).

    Returns:
        Updates, not rounded.

    Raises:
        ValueError: decay is not in (0, 1).

    >>> round(half_life(0.999), 2)
    692.8
    """
    if not 0 < decay < 1:
        raise ValueError(f"half_life needs a decay between 0 and 1 (both excluded), got {decay}")
    return math.log(2) / -math.log(decay)


def decay_from_half_life(steps: float) -> float:
    """The decay whose average halves the share of the past in so many updates, 2^(-1/steps).

    A half life in samples stays the same when the batch size changes: pass samples / batch_size.

    Args:
        steps: half life in updates, > 0.

    Returns:
        The decay, in (0, 1).

    Raises:
        ValueError: steps is not > 0.

    >>> decay_from_half_life(1)
    0.5
    """
    if not steps > 0:
        raise ValueError(f"the half life must be > 0 updates, got {steps}; a decay of 0 keeps no past at all")
    return 2.0 ** (-1.0 / steps)


class EMA:
    r"""The running average of a model's trainable weights, eq. (1), with one block to look through it.

        ema = EMA(model, decay=0.999, optimizer=optimizer)    # updates itself after every optimizer.step()
        with ema.swap():                                      # the model holds the average in here
            evaluate(model)

    A weight that appears under two names has one average; weights that are frozen now are left out, for good.
    Give `optimizer` the plain torch optimizer, not a wrapper around it; without it call `update()` after each step.
    """

    def __init__(
        self,
        model: nn.Module | Iterable[Tensor],
        decay: float = 0.999,
        init: str = "copy",
        warmup: bool = False,
        optimizer: torch.optim.Optimizer | None = None,
        buffers: bool = False,
    ) -> None:
        """Start the average.

        Args:
            model: a module, or parameters (their names are then "0", "1", ...).
            decay: a of eq. (1), in [0, 1).
            init: "copy" starts at the weights as they are now, "zero" at zero with the correction of eq. (3).
            warmup: use eq. (2), for averages that must be good from the first hundred steps on.
            optimizer: update after each of its steps, by a hook that `remove()` takes away.
            buffers: also average floating point buffers (the statistics of batch norm); integer buffers stay the
                model's own, as all buffers do when this is False.

        Raises:
            ValueError: decay outside [0, 1), an unknown init, nothing to average.
        """
        if not 0 <= decay < 1:
            raise ValueError(f"decay must be in [0, 1), got {decay}; 0.999 forgets half of the past in 693 steps")
        if init not in ("copy", "zero"):
            raise ValueError(f"init must be 'copy' (the post's) or 'zero' (bert4keras, corrected), got {init!r}")
        named = named_tensors(model, buffers)
        if not named:
            raise ValueError("EMA found no trainable weight to average; unfreeze the weights before making the EMA")
        self.decay, self.init, self.warmup = decay, init, warmup
        self.num_updates = 0
        self._product = 1.0  # a_1 a_2 ... a_n of eq. (3)
        self._names = list(named)
        self._live = list(named.values())
        with torch.no_grad():
            self._shadow = [p.detach().to(wide_dtype(p), copy=True) for p in self._live]
            if init == "zero":
                torch._foreach_zero_(self._shadow)
        self._swapped = False
        self._hook = None if optimizer is None else optimizer.register_step_post_hook(lambda *_: self.update())

    @torch.no_grad()
    def update(self) -> None:
        """Take the weights as they are now into the average, eq. (1).

        Raises:
            RuntimeError: inside `swap()`, where the weights are the average itself.
        """
        if self._swapped:
            raise RuntimeError("EMA.update() inside swap() would average the average; train outside the block")
        self.num_updates += 1
        decay = self.decay
        if self.warmup:
            decay = min(decay, (1 + self.num_updates) / (10 + self.num_updates))  # eq. (2)
        self._product *= decay
        self._follow_devices()
        if all(p.dtype == s.dtype for p, s in zip(self._live, self._shadow, strict=True)):
            torch._foreach_lerp_(self._shadow, self._live, 1 - decay)  # eq. (1)
        else:  # half precision weights: the difference is formed in the average's float32
            step = torch._foreach_sub(self._live, self._shadow)
            torch._foreach_add_(self._shadow, step, alpha=1 - decay)  # eq. (1)

    @contextmanager
    def swap(self) -> Iterator[None]:
        """Inside the block the model holds the average; on any exit it has its old bits again, at the same addresses.

        Raises:
            RuntimeError: a block inside a block, or a start at zero before the first update.

        >>> model = torch.nn.Linear(1, 1)
        >>> ema = EMA(model)
        >>> with ema.swap():
        ...     answer = model(torch.ones(1, 1))
        """
        if self._swapped:
            raise RuntimeError("EMA.swap() inside swap(): the model already holds the average")
        correction = self._correction()
        self._follow_devices()
        live = [p.detach() for p in self._live]  # same storage, no graph
        saved = [p.clone() for p in live]
        self._swapped = True
        try:
            with torch.no_grad():
                torch._foreach_copy_(live, self._shadow)
                if correction != 1.0:
                    for p, s in zip(live, self._shadow, strict=True):
                        p.copy_(s / correction)  # eq. (3)
            yield
        finally:
            with torch.no_grad():
                torch._foreach_copy_(live, saved)
            self._swapped = False

    def averages(self) -> dict[str, Tensor]:
        """The average of every weight under its name, as copies in float32 (float64 for float64 weights).

        Raises:
            RuntimeError: a start at zero before the first update.

        >>> weight = torch.nn.Parameter(torch.tensor([1.0]))
        >>> ema = EMA([weight], decay=0.9)
        >>> weight.data.fill_(2.0); ema.update(); ema.averages()  # 0.9 * 1 + 0.1 * 2
        tensor([2.])
        {'0': tensor([1.1000])}
        """
        correction = self._correction()
        return {name: s / correction for name, s in zip(self._names, self._shadow, strict=True)}  # eq. (3)

    def state_dict(self) -> dict[str, Tensor]:
        """Everything a resumed run needs, as tensors only: `safetensors.torch.save_file` takes it as it is."""
        state = {AVERAGE + name: s.clone() for name, s in zip(self._names, self._shadow, strict=True)}
        state[NUM_UPDATES] = torch.tensor(self.num_updates)
        state[DECAY_PRODUCT] = torch.tensor(self._product, dtype=torch.float64)
        return state

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Continue from a `state_dict()`; decay, init and warm-up are those of this object.

        Args:
            state: what `state_dict()` returned, on any device.

        Raises:
            ValueError: a name is missing or left over, or a shape differs; nothing has been changed then.
        """
        wanted = {AVERAGE + name: tuple(s.shape) for name, s in zip(self._names, self._shadow, strict=True)}
        wanted |= {NUM_UPDATES: (), DECAY_PRODUCT: ()}
        missing, left = sorted(wanted.keys() - state.keys()), sorted(state.keys() - wanted.keys())
        if missing or left:
            raise ValueError(
                f"this EMA averages {len(self._names)} weights, the state does not fit: {len(missing)} missing "
                f"{missing[:3]}, {len(left)} left over {left[:3]}; make the EMA from the same model with the same "
                "weights frozen and the same buffers="
            )
        for name, shape in wanted.items():
            if tuple(state[name].shape) != shape:
                raise ValueError(f"{name!r} has shape {tuple(state[name].shape)} in the state, {shape} in this EMA")
        for name, s in zip(self._names, self._shadow, strict=True):
            s.copy_(state[AVERAGE + name])
        self.num_updates, self._product = int(state[NUM_UPDATES]), float(state[DECAY_PRODUCT])

    def remove(self) -> None:
        """Stop following the optimizer; the average stays as it is."""
        if self._hook is not None:
            self._hook.remove()
            self._hook = None

    def _correction(self) -> float:
        """The share of the weights in Theta: 1 after a copy, 1 - a_1 ... a_n after a start at zero."""
        if self.init == "copy":
            return 1.0
        if self.num_updates == 0:
            raise RuntimeError("EMA(init='zero') has no average before its first update(); train a step or use 'copy'")
        return 1.0 - self._product

    def _follow_devices(self) -> None:
        """After model.to(device) the averages move too."""
        if self._shadow[0].device != self._live[0].device:
            self._shadow = [s.to(p.device) for s, p in zip(self._shadow, self._live, strict=True)]


def named_tensors(model: nn.Module | Iterable[Tensor], buffers: bool) -> dict[str, Tensor]:
    """What is averaged, each storage once: trainable parameters, and floating point buffers if asked for."""
    if isinstance(model, nn.Module):
        named: dict[str, Tensor] = {name: p for name, p in model.named_parameters() if p.requires_grad}
        if buffers:
            named |= {name: b for name, b in model.named_buffers() if b.is_floating_point()}
        return named
    unique = {id(p): p for p in model if p.requires_grad}
    return {str(i): p for i, p in enumerate(unique.values())}
