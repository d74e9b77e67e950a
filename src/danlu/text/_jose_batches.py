r"""Training of `danlu.text.jose` with plain torch: many triples at a time, on any device, where numba is missing.

The triples of a chunk all see the rows as they were before it. A row that is hit several times moves by the sum of its
steps s_i, shortened so that together they weigh no more than one whole step:

    x <- normalise(x + (sum_i r_i s_i) min(1, 1 / sum_i r_i))                                             (1)

which for small sums is what one update after another would do. Steps are those of `danlu.text._jose_loop`.

Source: kexue.fm/archives/7063; the batching is ours.
Shapes: B positives of a chunk, K negatives and R anchors of each (1, in the joint loss 2), V words, N documents,
    D features.
"""

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from danlu.text._jose_loop import JOSE_C, PAPER

__all__ = ["run_batches"]

CHUNK = 1024  # positives


def run_batches(
    order: np.ndarray, rates: np.ndarray, offsets: np.ndarray, ids: np.ndarray, keep: np.ndarray,
    accept: np.ndarray, alias: np.ndarray, words: Tensor, anchors: Tensor, hits: np.ndarray, stats: np.ndarray,
    margin: float, first: int, window: int, negative: int, rule: int, joint: bool, frozen: bool,
    generator: torch.Generator,
) -> None:  # fmt: skip
    """One pass over the documents of `order`, in place; the arguments are those of `run_documents`.

    A generator on the CPU takes the place of the seeds.
    """
    u, rows, other, rate, of_words = _positives(
        order, rates, offsets, ids, keep, hits, first, window, joint and not frozen, frozen, generator
    )
    column, other_word = torch.from_numpy(accept), torch.from_numpy(alias).long()
    device = words.device
    for part in torch.randperm(len(u), generator=generator).split(CHUNK):
        n = torch.randint(len(column), (len(part), negative), generator=generator)
        drawn = torch.rand(n.shape, generator=generator, dtype=torch.float64)
        n = torch.where(drawn < column[n], n, other_word[n])  # Walker's table
        valid = (n != u[part, None]) & (n != other[part, None])  # (B, K)
        chosen = [t.to(device) for t in (u[part], rows[part], n, valid, rate[part])]
        found = _move(words, anchors, chosen[0], chosen[1], chosen[2], chosen[3], chosen[4], margin, rule, frozen)
        for place, kind in ((0, of_words[part]), (3, ~of_words[part])):
            stats[place] += float(valid[kind].sum())
            stats[place + 1] += float(found[kind].count_nonzero())
            stats[place + 2] += float(found[kind].sum())


def _positives(
    order: np.ndarray, rates: np.ndarray, offsets: np.ndarray, ids: np.ndarray, keep: np.ndarray, hits: np.ndarray,
    first: int, window: int, joint: bool, frozen: bool, generator: torch.Generator,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """Rows u (P,), anchors (P, R), a word no negative may be (P,), step sizes (P,), whether v is an anchor (P,)."""
    sizes = offsets[order + 1] - offsets[order]
    begins = np.cumsum(sizes) - sizes
    flat = np.arange(sizes.sum()) + np.repeat(offsets[order] - begins, sizes)
    word, owner = ids[flat].astype(np.int64), np.repeat(order, sizes)
    rate = np.repeat(rates, sizes)
    kept = torch.rand(len(word), generator=generator, dtype=torch.float64).numpy() < keep[word]
    word, owner, rate = word[kept], owner[kept], rate[kept]
    radius = torch.randint(1, window + 1, (len(word),), generator=generator).numpy()
    at, near = [], []
    for distance in range(1, 0 if frozen else window + 1):
        left = np.nonzero(owner[:-distance] == owner[distance:])[0]
        right = left + distance
        for here, there in ((left, right), (right, left)):
            inside = radius[here] >= distance
            at.append(here[inside])
            near.append(there[inside])
    a = np.concatenate(at) if at else np.zeros(0, np.int64)
    u = np.concatenate(near) if near else np.zeros(0, np.int64)
    if joint:
        np.add.at(hits, owner[a], 1)
        rows = np.stack([word[a], first + owner[a]], axis=1)
        parts = (word[u], rows, word[a], rate[a], np.ones(len(a), bool))
    else:
        np.add.at(hits, owner, 1)
        rows = np.concatenate([word[a], first + owner])[:, None]
        of_words = np.arange(len(rows)) < len(a)
        parts = (np.concatenate([word[u], word]), rows, np.concatenate([word[a], word]),
                 np.concatenate([rate[a], rate]), of_words)  # fmt: skip
    found = [torch.from_numpy(np.ascontiguousarray(part)) for part in parts]
    return found[0], found[1], found[2], found[3], found[4]


def _move(
    words: Tensor, anchors: Tensor, u: Tensor, rows: Tensor, n: Tensor, valid: Tensor, rate: Tensor, margin: float,
    rule: int, frozen: bool,
) -> Tensor:  # fmt: skip
    """Move the rows of a chunk; returns the loss of each triple (B, K), 0 where the hinge is satisfied."""
    rate = rate.to(words.dtype)
    x, y, a = words[u], words[n], anchors[rows]  # (B, D), (B, K, D), (B, R, D)
    z = a.sum(1)  # (B, D)
    f, h = (x * z).sum(-1, keepdim=True), (y * z[:, None]).sum(-1)  # (B, 1), (B, K)
    loss = torch.where(valid, (margin - (f - h)).clamp_min(0), 0.0)
    active = (loss > 0).to(x.dtype)
    fa, ha = (x[:, None] * a).sum(-1), torch.einsum("bkd,brd->bkr", y, a)  # (B, R), (B, K, R)
    gap = fa[:, None] - ha  # (B, K, R)
    k_u, k_n, k_a = active, active, active[..., None].expand_as(gap)
    if rule == JOSE_C:
        k_u, k_n, k_a = k_u * (1 - f), k_n * (2 * h), k_a * (1 - gap)
    elif rule == PAPER:
        length = z.norm(dim=-1, keepdim=True).clamp_min(torch.finfo(x.dtype).tiny)
        apart = (x[:, None] - y).norm(dim=-1)[..., None].clamp_min(torch.finfo(x.dtype).tiny)
        k_u, k_n, k_a = k_u * (1 - f / length), k_n * (1 + h / length), k_a * (1 - gap / apart)
    step_a = torch.einsum("bkr,bkd->brd", k_a, x[:, None] - y) - (k_a * gap).sum(1)[..., None] * a
    weight = active.sum(1) * rate  # (B,)
    _apply(anchors, rows, step_a * rate[:, None, None], weight[:, None].expand_as(rows))
    if not frozen:
        step_u = k_u.sum(1, keepdim=True) * (z - f * x)  # (B, D)
        step_n = -k_n[..., None] * (z[:, None] - h[..., None] * y)  # (B, K, D)
        steps = torch.cat([step_u * rate[:, None], (step_n * rate[:, None, None]).flatten(0, 1)])
        _apply(words, torch.cat([u, n.flatten()]), steps, torch.cat([weight, (active * rate[:, None]).flatten()]))
    return loss


def _apply(table: Tensor, rows: Tensor, steps: Tensor, weight: Tensor) -> None:
    """Eq. (1) for the rows of a table that are hit."""
    hit = weight.flatten() > 0
    distinct, place = rows.flatten()[hit].unique(return_inverse=True)
    steps, weight = steps.reshape(-1, table.shape[1])[hit], weight.flatten()[hit]
    total = steps.new_zeros(len(distinct), table.shape[1]).index_add_(0, place, steps)
    sums = weight.new_zeros(len(distinct)).index_add_(0, place, weight)
    table[distinct] = F.normalize(table[distinct] + total / sums.clamp_min(1)[:, None], dim=-1)  # eq. (1)
