r"""GPLinker: relation triples as four agreeing scores, so that spans may nest, overlap and share what they like.

    score(s, s', p, o, o') = S(s, s') + O(o, o') + H_p(s, o) + T_p(s', o')                           (1)
    a triple is found where all four are above 0                                                     (2)

S and O point at subjects and objects (first token, last token), H and T tie, for each predicate p, the first tokens of
subject and object and their last ones: three pointers (`danlu.nn.global_pointer`) with 2, K and K heads, the first with
rotary positions and no ends before starts, the others without either. Asking for all four scores instead of their sum
makes decoding cheap: spans first, then a look at the ties of every pair.

    L = sum over the 2 + 2 K heads of the multi-label cross-entropy (`danlu.losses.multilabel`)      (3)

with right cells as lists: labels for every cell are 2 K T^2 numbers a sentence. The author's code sums the losses of
the three pointers, and so do we. Two triples with the same predicate whose heads and tails tie crosswise, between spans
that are themselves found, bring a third that nobody meant: (2) cannot tell, in no length of training.

Memory: one map of K heads is K T^2 numbers. A batch with more than `max_cells` of them is taken in groups of sentences
whose maps are computed again in the backward pass, so the peak does not grow with the batch.

Source: kexue.fm/archives/8888; Su et al., 2022, arXiv:2208.03054; close to Wang et al., 2020, arXiv:2010.13415.
Shapes: B sentences, T tokens, D features, K predicates, N triples.
"""

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from danlu.losses.multilabel import sparse_multilabel_cross_entropy
from danlu.nn.global_pointer import EfficientGlobalPointer, GlobalPointer, decode_spans
from danlu.text.triple_targets import Triple, check_triples, pointer_targets

__all__ = ["GPLinker", "gplinker_loss", "link_triples"]

Maps = tuple[Tensor, Tensor, Tensor]


def gplinker_loss(entities: Tensor, heads: Tensor, tails: Tensor, triples: Tensor) -> Tensor:
    """The loss of every sentence, eq. (3).

    Args:
        entities: (B, 2, T, T) logits of first and last token of subjects and of objects; -inf masks a cell.
        heads: (B, K, T, T) logits of the first tokens of subject and object.
        tails: (B, K, T, T) logits of their last tokens.
        triples: (N, 6) int64, rows (sentence, subject start, end, predicate, object start, end), ends exclusive.

    Returns:
        (B,) float32, or float64 for float64 logits.

    Raises:
        ValueError: the shapes do not fit, or a triple lies outside.

    >>> triple = torch.tensor([[0, 0, 1, 0, 1, 2]])
    >>> gplinker_loss(*(torch.zeros(1, k, 2, 2) for k in (2, 1, 1)), triple)  # 4 heads: log(1 + 3) + log(1 + 1) each
    tensor([8.3178])
    """
    batch, tokens = _check_maps(entities, heads, tails)
    check_triples(triples, batch, tokens, heads.shape[1])
    row, s, s_end, p, o, o_end = triples.unbind(1)
    subject, object_ = torch.zeros_like(p), torch.ones_like(p)
    spans = torch.stack([row, subject, s, s_end - 1], 1), torch.stack([row, object_, o, o_end - 1], 1)
    wanted = (
        (entities, torch.cat(spans)),
        (heads, torch.stack([row, p, s, o], 1)),
        (tails, torch.stack([row, p, s_end - 1, o_end - 1], 1)),
    )
    total = torch.zeros((), device=entities.device)
    for logits, cells in wanted:
        ids = pointer_targets(cells, batch, logits.shape[1], tokens)  # (B, H, P)
        total = total + sparse_multilabel_cross_entropy(logits.flatten(2), ids, reduction="none").sum(1)  # eq. (3)
    return total


def link_triples(
    entities: Tensor, heads: Tensor, tails: Tensor, threshold: float = 0.0, max_entities: int = 200
) -> list[list[Triple]]:
    """The triples whose four scores all lie above the threshold, eq. (2).

    Args:
        entities: (B, 2, T, T) logits of first and last token of subjects and of objects; -inf masks a cell.
        heads: (B, K, T, T) logits of the first tokens of subject and object.
        tails: (B, K, T, T) logits of their last tokens.
        threshold: in logits; 0 is where the loss puts it.
        max_entities: of the subjects of a sentence, and of its objects, those with the highest scores are looked at; an
            untrained model sees spans everywhere.

    Returns:
        For each sentence a sorted list of (subject start, end, predicate, object start, end), ends exclusive.

    Raises:
        ValueError: the shapes do not fit, or max_entities is below 1.

    >>> entities = torch.full((1, 2, 2, 2), -1.0)
    >>> entities[0, 0, 0, 0] = entities[0, 1, 1, 1] = 1.0  # a subject at token 0, an object at token 1
    >>> tie = torch.full((1, 3, 2, 2), -1.0)
    >>> tie[0, 2, 0, 1] = 1.0
    >>> link_triples(entities, tie, tie)
    [[(0, 1, 2, 1, 2)]]
    """
    _check_maps(entities, heads, tails)
    if max_entities < 1:
        raise ValueError(f"max_entities must be at least 1, got {max_entities}")
    found: list[list[Triple]] = []
    for b, spans in enumerate(decode_spans(entities, threshold=threshold)):
        sides = []
        for role in (0, 1):
            some = sorted((span for span in spans if span[2] == role), key=lambda span: -span[3])[:max_entities]
            spots = torch.tensor([span[:2] for span in some], dtype=torch.int64, device=heads.device)
            sides.append(spots.view(-1, 2))
        (s, s_end), (o, o_end) = (side.unbind(1) for side in sides)  # (S,) and (O,) each
        tied = heads[b][:, s[:, None], o[None]] > threshold  # (K, S, O)
        tied &= tails[b][:, s_end[:, None] - 1, o_end[None] - 1] > threshold  # eq. (2)
        p, i, j = tied.nonzero(as_tuple=True)
        rows = torch.stack([s[i], s_end[i], p, o[j], o_end[j]], 1).tolist()
        found.append(sorted((r[0], r[1], r[2], r[3], r[4]) for r in rows))
    return found


class GPLinker(nn.Module):
    """Three pointers over an encoder's vectors, trained by `gplinker_loss`, read by `link_triples`.

    Args:
        dim: D, features of the encoder.
        num_predicates: K.
        head_size: of the pointers.
        efficient: one projection for all predicates (`EfficientGlobalPointer`, about 0.3 M weights over BERT-base where
            the full form has 10 M, and as good).
        max_cells: numbers of one map of K heads beyond which a batch is taken in groups.

    >>> linker = GPLinker(8, num_predicates=3, head_size=4)
    >>> [tuple(m.shape) for m in linker(torch.zeros(2, 5, 8))]
    [(2, 2, 5, 5), (2, 3, 5, 5), (2, 3, 5, 5)]
    """

    def __init__(
        self,
        dim: int,
        num_predicates: int,
        head_size: int = 64,
        efficient: bool = True,
        max_cells: int = 2**24,
    ) -> None:
        super().__init__()
        if max_cells < 1:
            raise ValueError(f"max_cells must be at least 1, got {max_cells}")
        kind: type[EfficientGlobalPointer] | type[GlobalPointer] = (
            EfficientGlobalPointer if efficient else GlobalPointer
        )
        self.entities = kind(dim, 2, head_size)
        self.heads = kind(dim, num_predicates, head_size, rotary=False, lower_triangle_masked=False)
        self.tails = kind(dim, num_predicates, head_size, rotary=False, lower_triangle_masked=False)
        self.num_predicates, self.max_cells = num_predicates, max_cells

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Maps:
        """Maps (B, 2, T, T), (B, K, T, T) and (B, K, T, T) of `gplinker_loss`.

        Args:
            x: (B, T, D).
            mask: (B, T) bool, True = keep; special tokens are no spans and should be False. None keeps all.

        Returns:
            Logits of entities, heads and tails, -inf at masked tokens.
        """
        return self.entities(x, mask), self.heads(x, mask), self.tails(x, mask)

    def loss(self, x: Tensor, triples: Tensor, mask: Tensor | None = None) -> Tensor:
        """Sum of the losses of the sentences; divide by their number for the author's.

        Args:
            x: (B, T, D).
            triples: (N, 6) int64, as in `gplinker_loss`.
            mask: (B, T) bool, True = keep.

        Returns:
            Scalar, float32 or float64.
        """
        batch, tokens = x.shape[:2]
        check_triples(triples, batch, tokens, self.num_predicates)
        size = max(1, self.max_cells // (self.num_predicates * tokens * tokens))
        total = torch.zeros((), device=x.device)
        for start in range(0, batch, size):
            rows = slice(start, start + size)
            inside = (triples[:, 0] >= start) & (triples[:, 0] < start + size)
            some = triples[inside].clone()
            some[:, 0] -= start
            part = x[rows], None if mask is None else mask[rows], some
            if size < batch:
                value = checkpoint(self._loss, *part, use_reentrant=False)
            else:
                value = self._loss(*part)
            total = total + value
        return total

    @torch.no_grad()
    def extract(self, x: Tensor, mask: Tensor | None = None, threshold: float = 0.0) -> list[list[Triple]]:
        """The triples of each sentence, eq. (2).

        Args:
            x: (B, T, D).
            mask: (B, T) bool, True = keep.
            threshold: in logits.

        Returns:
            As of `link_triples`.
        """
        found: list[list[Triple]] = []
        size = max(1, self.max_cells // (self.num_predicates * x.shape[1] ** 2))
        for start in range(0, len(x), size):
            keep = None if mask is None else mask[start : start + size]
            entities, heads, tails = self(x[start : start + size], keep)
            found += link_triples(entities, heads, tails, threshold=threshold)
        return found

    def _loss(self, x: Tensor, mask: Tensor | None, triples: Tensor) -> Tensor:
        entities, heads, tails = self(x, mask)
        return gplinker_loss(entities, heads, tails, triples).sum()


def _check_maps(entities: Tensor, heads: Tensor, tails: Tensor) -> tuple[int, int]:
    """B and T, if the maps fit together."""
    batch, tokens = entities.shape[0], entities.shape[-1]
    square = entities.ndim == 4 and entities.shape == (batch, 2, tokens, tokens)
    if not (square and heads.shape == tails.shape == (batch, heads.shape[1] if heads.ndim == 4 else 0, tokens, tokens)):
        raise ValueError(
            "GPLinker's maps are entities (B, 2, T, T), heads and tails (B, K, T, T); got "
            f"{tuple(entities.shape)}, {tuple(heads.shape)} and {tuple(tails.shape)}"
        )
    return batch, tokens
