r"""Scores of a batch of pairs for InfoNCE and FlatNCE: everybody else in the batch is a negative.

    S_ij = <a_i, c_j> / (|a_i| |c_j| temperature),   positive of row i: column i                    "cross" (1)
    z = [a; c],   S_ij = <z_i, z_j> / (|z_i| |z_j| temperature),   j != i,   positive: i + B mod 2 B  "all" (2)

(1) is the form of sentence pairs and of CLIP (there with both directions averaged), (2) that of SimCLR. The product is
made in float32 under autocast too: at a temperature of 0.05 a score near 20 rounded to bfloat16 is off by up to 6 %
once exponentiated, whatever the loss does afterwards.

Source: kexue.fm/archives/8586; Chen et al., 2020, arXiv:2002.05709 (2); Radford et al., 2021, arXiv:2103.00020 (1).
Shapes: B pairs, M further negatives, D features, N = B or 2 B rows.
"""

import warnings
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from danlu.losses.contrastive import contrastive_stats, flat_nce, info_nce, wide

__all__ = ["ContrastiveLoss", "Scores", "contrastive_scores"]


class Scores(NamedTuple):
    """What `flat_nce` and `info_nce` take: `flat_nce(*contrastive_scores(z1, z2))`."""

    scores: Tensor  # (N, K)
    target: Tensor  # (N,) columns or (N, K) bool
    mask: Tensor | None = None  # (N, K) bool


def contrastive_scores(
    anchors: Tensor,
    candidates: Tensor,
    temperature: float | Tensor = 0.05,
    negatives: Tensor | None = None,
    groups: Tensor | None = None,
    supervised: bool = False,
    layout: str = "cross",
) -> Scores:
    """Cosines over temperature of B pairs, row i of both being one; the others of the batch are negatives.

    Args:
        anchors: (B, D), any length of vector.
        candidates: (B, D), the anchors' positives.
        temperature: divides the cosines, > 0.
        negatives: (M, D) for all anchors, or (B, M, D) for each its own; more candidates that are never positives.
        groups: (B,) integers; pairs of one group (duplicates, one class) are not negatives of each other.
        supervised: and count them as positives, in place of leaving them out.
        layout: "cross" scores anchors against candidates; "all" (SimCLR's) puts both into one set of 2 B, each against
            all others.

    Returns:
        `Scores` of B rows and B + M columns, or 2 B and 2 B + M; float32, or float64 for float64 embeddings.

    Raises:
        ValueError: shapes do not fit, an unknown layout, temperature not above 0, or supervised without groups.

    >>> e = torch.eye(2)
    >>> contrastive_scores(e, e, temperature=0.5).scores
    tensor([[2., 0.],
            [0., 2.]])
    """
    _check_pairs(anchors, candidates, temperature, negatives, groups, supervised, layout)
    with torch.autocast(anchors.device.type, enabled=False):  # a product in bfloat16 would round the scores
        a, c = _unit(anchors), _unit(candidates)  # (B, D) each
        if layout == "all":
            a = c = torch.cat([a, c])  # (2 B, D)
        scores = a @ c.T  # (N, N)
        further = torch.empty(len(a), 0, device=a.device)
        if negatives is not None:
            n = _unit(negatives)
            n = torch.cat([n, n]) if n.ndim == 3 and layout == "all" else n
            further = a @ n.T if n.ndim == 2 else (n @ a[:, :, None])[..., 0]  # (N, M)
            scores = torch.cat([scores, further], dim=1)
        scores = scores / temperature  # (N, N + M)  eq. (1) and (2)
    rows, pairs = torch.arange(len(a), device=a.device), len(anchors)
    target = (rows + pairs) % len(a) if layout == "all" else rows
    mask = rows[:, None] != rows if layout == "all" else None  # (N, N), nothing is its own candidate
    if groups is not None:
        g = torch.cat([groups, groups]) if layout == "all" else groups
        same = g[:, None] == g  # (N, N)
        if supervised:
            return Scores(scores, F.pad(same, (0, further.shape[1])), _padded(mask, further))
        keep = ~same | (rows == target[:, None])
        mask = keep if mask is None else keep & mask
    return Scores(scores, target, _padded(mask, further))


class ContrastiveLoss(nn.Module):
    """`flat_nce` or `info_nce` of `contrastive_scores`; `stats` takes what `forward` takes.

    kind: "flat" or "infonce". layout: "cross" or "all". symmetric: the mean of both directions of "cross" (further
    negatives are candidates, so the second direction has none). gather: under torch.distributed every process computes
    the loss of all processes' pairs (as many on each); with DistributedDataParallel the gradients are those of one
    process with the whole batch. A temperature that learns fits "infonce" alone.
    """

    def __init__(
        self,
        kind: str = "flat",
        temperature: float | Tensor = 0.05,
        layout: str = "cross",
        symmetric: bool = True,
        gather: bool = False,
    ) -> None:
        super().__init__()
        if kind not in ("flat", "infonce"):
            raise ValueError(f"kind must be 'flat' or 'infonce', got {kind!r}")
        if kind == "flat" and isinstance(temperature, Tensor) and temperature.requires_grad:
            warnings.warn(
                "FlatNCE is unbounded below as its temperature falls, so a learned one runs to 0; fix the temperature "
                "or take kind='infonce'",
                stacklevel=2,
            )
        self.kind, self.layout, self.symmetric, self.gather = kind, layout, symmetric, gather
        self.temperature = temperature

    def forward(
        self,
        anchors: Tensor,  # (B, D)
        candidates: Tensor,  # (B, D)
        negatives: Tensor | None = None,  # (M, D) or (B, M, D)
        groups: Tensor | None = None,  # (B,)
        supervised: bool = False,
    ) -> Tensor:
        function = flat_nce if self.kind == "flat" else info_nce
        sets = self.scores(anchors, candidates, negatives, groups, supervised)
        return torch.stack([function(*s) for s in sets]).mean()

    def scores(
        self,
        anchors: Tensor,
        candidates: Tensor,
        negatives: Tensor | None = None,
        groups: Tensor | None = None,
        supervised: bool = False,
    ) -> list[Scores]:
        """The scores of each direction."""
        if self.gather and torch.distributed.is_initialized():
            anchors, candidates = _gathered(anchors), _gathered(candidates)
            negatives = None if negatives is None else _gathered(negatives)
            groups = None if groups is None else _gathered(groups)
        rest = (groups, supervised, self.layout)
        found = [contrastive_scores(anchors, candidates, self.temperature, negatives, *rest)]
        if self.symmetric and self.layout == "cross":
            found.append(contrastive_scores(candidates, anchors, self.temperature, None, *rest))
        return found

    @torch.no_grad()
    def stats(self, *args: Any, **kwargs: Any) -> dict[str, Tensor]:
        """`contrastive_stats` of the arguments of `forward`, in the first direction."""
        return contrastive_stats(*self.scores(*args, **kwargs)[0])


class _Gathered(torch.autograd.Function):
    """All processes' rows; the gradient of a process's own rows is the sum over the processes."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        parts = [torch.empty_like(x) for _ in range(torch.distributed.get_world_size())]
        torch.distributed.all_gather(parts, x.contiguous())
        ctx.rows = len(x)
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        total = grads[0].clone(memory_format=torch.contiguous_format)  # the sum is made in place
        torch.distributed.all_reduce(total)
        return total[ctx.rows * torch.distributed.get_rank() :][: ctx.rows]


def _gathered(x: Tensor) -> Tensor:
    rows: Tensor = _Gathered.apply(x)
    return rows


def _unit(x: Tensor) -> Tensor:
    return F.normalize(wide(x), dim=-1)


def _padded(mask: Tensor | None, further: Tensor) -> Tensor | None:
    """The mask with a True for each further negative."""
    return None if mask is None else F.pad(mask, (0, further.shape[1]), value=True)


def _check_pairs(
    anchors: Tensor,
    candidates: Tensor,
    temperature: float | Tensor,
    negatives: Tensor | None,
    groups: Tensor | None,
    supervised: bool,
    layout: str,
) -> None:
    if anchors.ndim != 2 or anchors.shape != candidates.shape:
        raise ValueError(
            f"contrastive_scores needs two batches (B, D), row i of both a pair; got {tuple(anchors.shape)} and "
            f"{tuple(candidates.shape)}"
        )
    if layout not in ("cross", "all"):
        raise ValueError(f"layout must be 'cross' (anchors against candidates) or 'all' (one set), got {layout!r}")
    if not isinstance(temperature, Tensor) and not temperature > 0:
        raise ValueError(f"temperature must be > 0, got {temperature}; 0.05 is usual for sentences, 0.1 for images")
    if negatives is not None:
        size, features = anchors.shape
        if negatives.ndim not in (2, 3) or negatives.shape[-1] != features or (
            negatives.ndim == 3 and len(negatives) != size
        ):  # fmt: skip
            raise ValueError(f"negatives must be (M, {features}), or ({size}, M, {features}) for each anchor its own; "
                             f"got {tuple(negatives.shape)}")  # fmt: skip
    if groups is not None and (groups.shape != anchors.shape[:1] or groups.is_floating_point()):
        raise ValueError(f"groups must be integers ({len(anchors)},), got {groups.dtype} {tuple(groups.shape)}")
    if supervised and groups is None:
        raise ValueError("supervised=True takes pairs of one group as positives and needs groups=")
