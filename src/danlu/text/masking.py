r"""Masking for masked language models: whole words, a share of all positions, 80 / 10 / 10.

Words are runs of tokens that begin where `begins` says so, at a row's first token and behind a special token. They are
taken in a random order w_1, w_2, ... while they fit, so that at most the wanted number of positions is chosen:

    chosen = { w_i : |w_1| + ... + |w_i| <= round(share * M) }                                               (1)

M counts the tokens of the whole batch that are not special; the choice is over the batch, not row by row. A chosen
position then becomes the mask token with probability 0.8, a random token that is not special with 0.1, and stays what
it is with 0.1, each on its own.                                                                              (2)

Source: Devlin et al., 2018, arXiv:1810.04805; whole words in Chinese: Cui et al., 2019, arXiv:1906.08101.
Shapes: B rows, T tokens of a row.
"""

import torch
from torch import Tensor

__all__ = ["mask_words"]


def mask_words(
    ids: Tensor,
    begins: Tensor | None,
    *,
    mask_id: int,
    special: Tensor,
    vocab_size: int,
    share: float = 0.15,
    generator: torch.Generator | None = None,
) -> tuple[Tensor, Tensor]:
    """A batch with words hidden, and where they are; the targets are `ids[chosen]`.

    Args:
        ids: (B, T) int64 token ids.
        begins: (B, T) bool, True where a token begins a word; None: every token is a word.
        mask_id: id of the mask token.
        special: (S,) ids that are never chosen and never put in place of a token, the mask token's among them.
        vocab_size: random tokens are drawn from the ids below it that are not special.
        share: of the positions that are not special, in [0, 1].
        generator: of the random choices.

    Returns:
        (ids with words hidden (B, T), chosen (B, T) bool).

    Raises:
        ValueError: shapes that do not fit, a share outside [0, 1], or no id that is not special.

    >>> ids, begins = torch.tensor([[2, 7, 8, 9, 3]]), torch.tensor([[True, True, False, False, True]])
    >>> special = torch.tensor([0, 1, 2, 3, 4])
    >>> mask_words(ids, begins, mask_id=4, special=special, vocab_size=10, share=1.0)[1].tolist()
    [[False, True, True, True, False]]
    """
    if ids.ndim != 2 or (begins is not None and begins.shape != ids.shape):
        given = "None" if begins is None else str(tuple(begins.shape))
        raise ValueError(
            f"mask_words needs ids (B, T) and begins of the same shape, got {tuple(ids.shape)} and {given}"
        )
    if not 0 <= share <= 1:
        raise ValueError(f"share is a part of the positions and lies in [0, 1], got {share}")
    device = ids.device
    ordinary = torch.ones(vocab_size, dtype=torch.bool, device=device)
    ordinary[special.to(device)] = False
    candidates = ordinary.nonzero()[:, 0]
    if not len(candidates):
        raise ValueError(f"all {vocab_size} ids are special; there is no token to hide a word behind")
    free = ordinary[ids]  # (B, T)
    starts = torch.ones_like(free) if begins is None else begins.bool() | ~free
    starts[:, :1] = True
    word = starts.flatten().cumsum(0) - 1  # (B T,) number of the word that a position belongs to
    sizes = torch.bincount(word, weights=free.flatten().double())  # special tokens count nothing
    order = torch.rand(len(sizes), generator=generator, device=device).argsort()
    wanted = round(share * int(free.sum()))
    fits = torch.empty_like(sizes, dtype=torch.bool)
    fits[order] = sizes[order].cumsum(0) <= wanted  # eq. (1)
    chosen = fits[word].view_as(ids) & free
    fate = torch.rand(ids.shape, generator=generator, device=device)
    drawn = candidates[torch.randint(len(candidates), ids.shape, generator=generator, device=device)]
    hidden = torch.where(fate < 0.8, mask_id, torch.where(fate < 0.9, drawn, ids))  # eq. (2)
    return torch.where(chosen, hidden, ids), chosen
