r"""SamplePairing: the average of two examples under the label of the first, switched on and off by a schedule.

    x~ = (x + x[p]) / 2,   y~ = y                                                                     (1)
    on at epoch e   where   warmup <= e < epochs - cooldown   and   (e - warmup) mod (on + off) < on          (2)

Every example plays both roles, so over a pair the target of (1) is (y + y[p]) / 2 on average: mixup whose coefficient
is always 1/2; mixup only makes it random and so softer (the post). One label is noise to who sees two examples, so the
training loss stays high; hence the paper's schedule, which begins and ends without pairs.

Source: Inoue, 2018, arXiv:1801.02929 (schedule for small sets: 100 epochs without, then 8 with and 2 without, the last
    without again); kexue.fm/archives/5693.
Shapes: B examples.
"""

import torch
from torch import Tensor

from danlu.train.pairing import draw_mix, mix_inputs

__all__ = ["sample_pairing", "sample_pairing_on"]


def sample_pairing(x: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Each example averaged with another of the batch, eq. (1); its label stays.

    Args:
        x: (B, ...) float inputs or embeddings.
        generator: source of randomness; None takes torch's own.

    Returns:
        (B, ...) in the dtype of x.

    Raises:
        TypeError: x holds integers.

    >>> sample_pairing(torch.tensor([[1.0], [3.0]]), torch.Generator().manual_seed(1)).sum()  # 2 + 2, or 1 + 3
    tensor(4.)
    """
    return mix_inputs(x, draw_mix(len(x), float("inf"), generator=generator, device=x.device))  # eq. (1)


def sample_pairing_on(
    epoch: int, epochs: int, warmup: int = 100, cooldown: int = 100, on: int = 8, off: int = 2
) -> bool:
    """Whether an epoch pairs samples, eq. (2); the unit may as well be steps.

    Args:
        epoch: from 0.
        epochs: of the whole training.
        warmup: epochs without pairs at the beginning.
        cooldown: epochs without pairs at the end; the paper's length of it is not known to us.
        on: epochs with pairs in each cycle, >= 1.
        off: epochs without that follow them.

    Returns:
        True to train on `sample_pairing(x)`, False on x.

    Raises:
        ValueError: a length is negative, or on is below 1.

    >>> "".join("-x"[sample_pairing_on(e, 12, warmup=2, cooldown=1, on=3, off=2)] for e in range(12))
    '--xxx--xxx--'
    """
    if min(warmup, cooldown, off) < 0 or on < 1:
        raise ValueError(
            f"sample_pairing_on needs warmup, cooldown, off >= 0 and on >= 1; got {warmup}, {cooldown}, {off} and {on}"
        )
    return warmup <= epoch < epochs - cooldown and (epoch - warmup) % (on + off) < on  # eq. (2)
