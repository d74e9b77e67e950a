r"""CasRel: first the subjects, then for each of them the objects of every predicate, as starts and ends of spans.

P(s, p, o | x) = P(s | x) P(p, o | s, x), where every start and every end is a yes or no of its own ("half pointers"):

    P_s = sigmoid(W_s x_t + b_s)^m                    start and end of subjects, m = 2                 (1)
    z = [x_start; x_end]                              of the subject                                   (2)
    g_t = CLN(x_t; z)       or  x_t + (x_start + x_end) / 2                                            (3)
    P_o = sigmoid(W_o g_t + b_o)^m'                   start and end of objects for each p, m' = 4      (4)

The powers are `danlu.losses.power_activation`, CLN is layer norm with gain and shift linear in z
(`danlu.nn.conditional_norm`), zero at first, so that training begins with one answer for all subjects. fusion="add",
without powers, is the paper's form.

    L = sum_t mean_2 BCE(P_s) + sum_t sum_p mean_2 BCE(P_o),      over the sum of kept tokens          (5)

Training shows one subject a sentence: a gold start at random, then a gold end at random among those not before it, not
always of one subject. A pair that is no subject has no objects, a free example of what to reject.

    a span begins at every start above its threshold and ends at the nearest end above its own         (6)

so of two subjects that share their start only the shorter is found; GPLinker finds both. Thresholds are on the powers;
0.6 and 0.5 favour the precision of starts.

The post takes x in (2) and (3) from before the encoder's last layer norm; any vectors will do, and `danlu train` gives
the encoder's last ones, so that every family can be used.

Source: kexue.fm/archives/7161; Wei et al., 2020, arXiv:1909.03227.
Shapes: B sentences, T tokens, D features, K predicates, N triples, S subjects.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from danlu.losses.power_activation import power_binary_cross_entropy, power_sigmoid
from danlu.nn.conditional_norm import Norm
from danlu.text.triple_targets import Triple, check_triples

__all__ = ["CasRel", "nearest_spans", "sample_subject"]

FUSIONS = ("cln", "add")


def nearest_spans(starts: Tensor, ends: Tensor) -> Tensor:
    """From every start to the nearest end that is not before it, eq. (6).

    Args:
        starts: (..., T) bool.
        ends: (..., T) bool.

    Returns:
        (N, ...) int64: leading indices, start, end; end exclusive. A start without an end gives no span.

    Raises:
        ValueError: the shapes differ, or they are not bool.

    >>> nearest_spans(torch.tensor([0, 1, 1, 0, 1]).bool(), torch.tensor([1, 0, 0, 1, 0]).bool()).tolist()
    [[1, 4], [2, 4]]
    """
    if starts.shape != ends.shape or starts.dtype != torch.bool or ends.dtype != torch.bool or starts.ndim < 1:
        raise ValueError(
            "nearest_spans needs starts and ends of one shape, both bool; got "
            f"{starts.dtype} {tuple(starts.shape)} and {ends.dtype} {tuple(ends.shape)}"
        )
    tokens = starts.shape[-1]
    place = torch.arange(tokens, device=starts.device).expand(starts.shape)
    nearest = torch.where(ends, place, tokens).flip(-1).cummin(-1).values.flip(-1)  # (..., T), T where there is none
    found = (starts & (nearest < tokens)).nonzero()  # (N, ...)
    return torch.cat([found, nearest[found.unbind(1)][:, None] + 1], 1)  # eq. (6)


def sample_subject(subjects: Sequence[tuple[int, int]], generator: torch.Generator | None = None) -> tuple[int, int]:
    """A start and an end to train on: any gold start, any gold end behind it.

    Args:
        subjects: (start, end) of the distinct subjects of a sentence, end exclusive; at least one.
        generator: of the choice; None: the global one.

    Returns:
        (start, end), not always one of the subjects.

    >>> sample_subject([(3, 5)])
    (3, 5)
    """
    start = subjects[int(torch.randint(len(subjects), (), generator=generator))][0]
    ends = [end for _, end in subjects if end > start]
    return start, ends[int(torch.randint(len(ends), (), generator=generator))]


class CasRel(nn.Module):
    """Tagger of subjects and tagger of the objects of a given subject, eqs. (1) to (4).

    Args:
        dim: D, features of the encoder.
        num_predicates: K.
        power: m of subjects and of objects; (1, 1) is the plain sigmoid.
        fusion: "cln" or "add", eq. (3).

    Raises:
        ValueError: an unknown fusion, or a size below 1.

    >>> casrel = CasRel(8, num_predicates=3)
    >>> casrel.object_logits(torch.zeros(2, 5, 8), torch.tensor([[1, 0, 2]])).shape  # tokens 0 and 1 of sentence 1
    torch.Size([1, 5, 3, 2])
    """

    def __init__(
        self, dim: int, num_predicates: int, power: tuple[float, float] = (2.0, 4.0), fusion: str = "cln"
    ) -> None:
        super().__init__()
        if fusion not in FUSIONS:
            raise ValueError(f"fusion must be one of {', '.join(FUSIONS)}; got {fusion!r}")
        if min(dim, num_predicates) < 1:
            raise ValueError(f"dim and num_predicates must be at least 1; got {dim} and {num_predicates}")
        self.num_predicates, self.power, self.fusion = num_predicates, power, fusion
        self.subject = nn.Linear(dim, 2)
        self.object = nn.Linear(dim, 2 * num_predicates)
        self.norm = Norm(dim, eps=1e-7, condition_dim=2 * dim) if fusion == "cln" else None
        for linear in (self.subject, self.object):
            nn.init.trunc_normal_(linear.weight, std=0.02, a=-0.04, b=0.04)
            nn.init.zeros_(linear.bias)

    def extra_repr(self) -> str:
        """What print(model) shows."""
        return f"{self.num_predicates} predicates, power={self.power}, fusion={self.fusion!r}"

    def subject_logits(self, x: Tensor) -> Tensor:
        """Logits (B, T, 2) of start and end of subjects: x (B, T, D)."""
        return self.subject(x)

    def object_logits(self, x: Tensor, subjects: Tensor) -> Tensor:
        """Logits of start and end of the objects of some subjects.

        Args:
            x: (B, T, D).
            subjects: (S, 3) int64, rows (sentence, start, end), end exclusive.

        Returns:
            (S, T, K, 2).
        """
        row, start, end = subjects.unbind(1)
        own = x[row]  # (S, T, D)
        first, last = x[row, start], x[row, end - 1]  # (S, D) each
        if self.norm is not None:
            g = self.norm(own, torch.cat([first, last], -1))  # eqs. (2), (3)
        else:
            g = own + ((first + last) / 2)[:, None]  # eq. (3)
        return self.object(g).unflatten(-1, (self.num_predicates, 2))

    def loss(self, x: Tensor, triples: Tensor, subjects: Tensor, mask: Tensor, reduction: str = "mean") -> Tensor:
        """Cross-entropy of all subjects and of the objects of the sampled ones, eq. (5).

        Args:
            x: (B, T, D).
            triples: (N, 6) int64, rows (sentence, subject start, end, predicate, object start, end), ends exclusive.
            subjects: (S, 3) int64, rows (sentence, start, end): what was sampled, at most one a sentence; sentences
                without one count for the subjects only.
            mask: (B, T) bool, True = keep; special tokens are no spans and should be False.
            reduction: "mean" over the kept tokens, or "sum".

        Returns:
            Scalar, float32 or float64.

        Raises:
            ValueError: a triple lies outside, or an unknown reduction.
        """
        if reduction not in ("mean", "sum"):
            raise ValueError(f"reduction must be 'mean' or 'sum', got {reduction!r}")
        batch, tokens = x.shape[:2]
        check_triples(triples, batch, tokens, self.num_predicates)
        row, s, s_end, p, o, o_end = triples.unbind(1)
        wanted = torch.zeros(batch, tokens, 2, device=x.device)
        wanted[row, s, 0] = wanted[row, s_end - 1, 1] = 1.0
        keep = mask[..., None].expand_as(wanted)
        total = self._entropy(self.subject_logits(x), wanted, self.power[0], keep)
        if len(subjects):
            same = (subjects[:, None] == torch.stack([row, s, s_end], 1)).all(-1)  # (S, N): triples of this subject
            i, n = same.nonzero(as_tuple=True)
            objects = torch.zeros(len(subjects), tokens, self.num_predicates, 2, device=x.device)
            objects[i, o[n], p[n], 0] = objects[i, o_end[n] - 1, p[n], 1] = 1.0
            keep = mask[subjects[:, 0]][..., None, None].expand_as(objects)
            total = total + self._entropy(self.object_logits(x, subjects), objects, self.power[1], keep)
        return total / mask.sum().clamp_min(1) if reduction == "mean" else total  # eq. (5)

    @torch.no_grad()
    def extract(
        self, x: Tensor, mask: Tensor, start: float = 0.6, end: float = 0.5, max_subjects: int = 64
    ) -> list[list[Triple]]:
        """The triples of each sentence, eq. (6) for subjects and then for their objects.

        Args:
            x: (B, T, D).
            mask: (B, T) bool, True = keep.
            start: threshold of starts, on the power.
            end: threshold of ends.
            max_subjects: subjects taken together; bounds the memory, no subject is left out.

        Returns:
            For each sentence a sorted list of (subject start, end, predicate, object start, end), ends exclusive.
        """
        found: list[set[Triple]] = [set() for _ in range(len(x))]
        subjects = self._spans(self.subject_logits(x), self.power[0], mask[..., None], start, end)
        for some in subjects.split(max_subjects):
            keep = mask[some[:, 0]][:, :, None, None]
            logits = self.object_logits(x, some)  # (S, T, K, 2)
            spans = self._spans(logits, self.power[1], keep, start, end)  # (N, 4): subject, predicate, start, end
            rows = torch.cat([some[spans[:, 0]], spans[:, 1:]], 1).tolist()
            for b, s, s_end, p, o, o_end in rows:
                found[b].add((s, s_end, p, o, o_end))
        return [sorted(triples) for triples in found]

    def _spans(self, logits: Tensor, power: float, keep: Tensor, start: float, end: float) -> Tensor:
        """Spans (N, ...) along axis 1 of logits (B, T, ..., 2): other indices, start, end."""
        q = power_sigmoid(logits.float(), power)
        above = (q > torch.tensor([start, end], device=q.device)) & keep
        starts, ends = above.movedim(1, -2).unbind(-1)  # (B, ..., T) each
        return nearest_spans(starts, ends)

    @staticmethod
    def _entropy(logits: Tensor, target: Tensor, power: float, keep: Tensor) -> Tensor:
        """Sum over the kept tokens of the mean over start and end."""
        return power_binary_cross_entropy(logits, target, power, "sum", keep) / 2
