r"""Linear-chain conditional random field: a distribution over whole tag paths, trained exactly, and a layer around it.

    score(y) = s[y_1] + sum_t f_t[y_t] + sum_{t>=2} g[y_{t-1}, y_t] + e[y_n]                              (1)
    NLL = log Z - score(y),   log Z = log sum_y exp score(y)                                              (2)
    dNLL/df_t[j] = p(y_t = j) - [y_t = j]                                                                 (3)
    dNLL/dg[i, j] = sum_t p(y_{t-1} = i, y_t = j) - count(i, j)                                           (4)

f are the emissions of an encoder, g the transitions i -> j, s and e scores of the first and last tag. The gradient is
not traced through the recursion: (3) and (4) come from one forward and one backward sweep. Three engines compute them:

    "kernel"    compiled (numba, pip install "danlu[fast]"), CPU tensors: the default there for up to 512 tags
    "torch"     the same sweeps as one matrix product a step, any device: the default elsewhere
    "autograd"  plain operations in log space (danlu.math.semiring): the reference, also for torch.func

The first two leave the logarithm for as long as nothing is lost by it (`danlu.nn._crf_sweep`); rows whose scores spread
too far for that (weights of +-200, -1e4 for "never" where never is all there is) are noticed and computed in log space.
All engines can be differentiated twice: `create_graph=True` recomputes through "autograd". DANLU_KERNELS=off in the
environment switches the kernel off; torch.compile leaves the engines as they are.

A masked step, wherever it stands, is skipped as if the sequence did not have it; its tag may hold any number, such as
-100. Half precision and autocast do not reach the recursion: results are float32, or float64 for float64 scores. With
the learning rate of a pretrained encoder the transitions hardly move: give them 100 times more (optim.param_groups).

Source: Lafferty et al., 2001; Lample et al., 2016, arXiv:1603.01360; kexue.fm/archives/5542 and 7196 (no s and e there:
    start_end=False).
Shapes: B batch, T steps, K tags.
"""

import torch
from torch import Tensor, nn

from danlu.math.reduce import reduce_loss
from danlu.math.semiring import chain_entropy, chain_inputs
from danlu.nn._chain import full_precision
from danlu.nn._crf_sweep import chain_probabilities, chain_value
from danlu.nn.crf_decode import sample_paths, viterbi, viterbi_nbest

__all__ = ["CRF", "crf_log_partition", "crf_marginals", "crf_nll"]


def crf_nll(
    emissions: Tensor,
    tags: Tensor,
    transitions: Tensor,
    start: Tensor | None = None,
    end: Tensor | None = None,
    mask: Tensor | None = None,
    reduction: str = "mean",
    backend: str = "auto",
) -> Tensor:
    """Negative log-likelihood of tag paths in nats, eq. (2).

    Args:
        emissions: (B, T, K) scores f; -inf forbids a tag at a step.
        tags: (B, T) integers in [0, K) at kept steps, anything at masked ones.
        transitions: (K, K) scores g from row to column; -inf forbids a pair.
        start: (K,) scores of the first kept tag; None is zeros.
        end: (K,) scores of the last kept tag; None is zeros.
        mask: (B, T) bool, True = keep, any pattern; None keeps all.
        reduction: "mean" over the rows, "sum", "none", or "token" (sum divided by the number of kept steps).
        backend: "auto", "kernel", "torch" or "autograd", see above.

    Returns:
        Scalar, or (B,) for "none"; a row without kept steps has 0. float32, float64 for float64 scores.

    Raises:
        ValueError: shapes do not fit, a kept tag is outside [0, K), or a gold path is forbidden by -inf (row and step
            are named); an unknown reduction or backend.

    >>> loss = crf_nll(torch.zeros(1, 3, 2), torch.zeros(1, 3, dtype=torch.long), torch.zeros(2, 2))
    >>> round(loss.exp().item(), 4)  # one of 8 equal paths
    8.0
    """
    if reduction not in ("mean", "sum", "none", "token"):
        raise ValueError(f"crf_nll has the reductions 'mean', 'sum', 'none' and 'token', got {reduction!r}")
    f, g, s, e, keep = chain_inputs("crf_nll", emissions, transitions, start, end, mask)
    if tags.shape != keep.shape or tags.is_floating_point() or tags.dtype == torch.bool:
        raise ValueError(
            f"crf_nll needs integer tags of shape {tuple(keep.shape)}, one for each step of the emissions; got "
            f"{tags.dtype} {tuple(tags.shape)}"
        )
    nll = chain_value("crf_nll", f, g, s, e, tags.long(), keep, backend)  # (B,)  eq. (2)
    if reduction == "token":
        return nll.sum() / keep.sum().clamp_min(1)
    return reduce_loss(nll, reduction)


def crf_log_partition(
    emissions: Tensor,
    transitions: Tensor,
    start: Tensor | None = None,
    end: Tensor | None = None,
    mask: Tensor | None = None,
    backend: str = "auto",
) -> Tensor:
    """Log of the sum of exp(score) over all paths, log Z of eq. (2); its gradient are the marginals.

    Args:
        emissions: (B, T, K) scores f; -inf forbids a tag at a step.
        transitions: (K, K) scores g from row to column; -inf forbids a pair.
        start: (K,) scores of the first kept tag; None is zeros.
        end: (K,) scores of the last kept tag; None is zeros.
        mask: (B, T) bool, True = keep, any pattern; None keeps all.
        backend: "auto", "kernel", "torch" or "autograd".

    Returns:
        (B,); 0 for a row without kept steps, -inf for one without any allowed path.

    Raises:
        ValueError: shapes do not fit, or an unknown backend.

    >>> round(crf_log_partition(torch.zeros(1, 3, 2), torch.zeros(2, 2)).exp().item(), 4)
    8.0
    """
    f, g, s, e, keep = chain_inputs("crf_log_partition", emissions, transitions, start, end, mask)
    return chain_value("crf_log_partition", f, g, s, e, None, keep, backend)


def crf_marginals(
    emissions: Tensor,
    transitions: Tensor,
    start: Tensor | None = None,
    end: Tensor | None = None,
    mask: Tensor | None = None,
    backend: str = "auto",
) -> Tensor:
    """Probability of each tag at each step, all other steps summed out; differentiable.

    Args:
        emissions: (B, T, K) scores f; -inf forbids a tag at a step.
        transitions: (K, K) scores g from row to column; -inf forbids a pair.
        start: (K,) scores of the first kept tag; None is zeros.
        end: (K,) scores of the last kept tag; None is zeros.
        mask: (B, T) bool, True = keep, any pattern; None keeps all.
        backend: "auto", "kernel", "torch" or "autograd".

    Returns:
        (B, T, K): kept steps sum to 1, masked steps are 0.

    Raises:
        ValueError: shapes do not fit, or an unknown backend.

    >>> crf_marginals(torch.zeros(1, 2, 2), torch.tensor([[0.0, -torch.inf], [-torch.inf, -torch.inf]]))
    tensor([[[1., 0.],
             [1., 0.]]])
    """
    f, g, s, e, keep = chain_inputs("crf_marginals", emissions, transitions, start, end, mask)
    return chain_probabilities(f, g, s, e, keep, backend)


class CRF(nn.Module):
    r"""`crf_nll` with its scores as parameters; decoding, marginals and sampling beside it.

    State dict: transitions (K, K), and with start_end also start (K,) and end (K,). Constraints are not stored.

    Args:
        num_tags: K.
        constraints: None, or bool tensors (allowed (K, K), start (K,), end (K,)), True = allowed, such as
            `danlu.math.allowed_transitions` returns. Forbidden pairs score -inf in training and decoding.
        start_end: learn scores of the first and the last tag; False is the form of kexue.fm/archives/5542.
        init: "zeros", "glorot" (uniform within sqrt(6 / 2K), bert4keras) or "uniform" (within 0.1, pytorch-crf).
        generator: source of randomness for init; None takes torch's own.

    >>> crf = CRF(2)
    >>> loss = crf(torch.zeros(1, 3, 2), torch.tensor([[0, 1, -100]]), torch.tensor([[True, True, False]]))
    >>> round(loss.exp().item(), 4)  # one of the 4 paths over two steps
    4.0
    """

    allowed: Tensor | None
    allowed_start: Tensor | None
    allowed_end: Tensor | None

    def __init__(
        self,
        num_tags: int,
        constraints: tuple[Tensor, Tensor, Tensor] | None = None,
        start_end: bool = True,
        init: str = "zeros",
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        if num_tags < 1:
            raise ValueError(f"num_tags must be at least 1, got {num_tags}")
        self.num_tags = num_tags
        self.transitions = nn.Parameter(torch.zeros(num_tags, num_tags))
        self.start = nn.Parameter(torch.zeros(num_tags)) if start_end else None
        self.end = nn.Parameter(torch.zeros(num_tags)) if start_end else None
        bounds = {"zeros": 0.0, "glorot": (3 / num_tags) ** 0.5, "uniform": 0.1}
        if init not in bounds:
            raise ValueError(f"init must be one of {', '.join(bounds)}; got {init!r}")
        if init != "zeros":
            for parameter in self.parameters():
                nn.init.uniform_(parameter, -bounds[init], bounds[init], generator=generator)
        shapes = [(num_tags, num_tags), (num_tags,), (num_tags,)]
        given = [None] * 3 if constraints is None else list(constraints)
        if constraints is not None and [(t.dtype, tuple(t.shape)) for t in constraints] != [
            (torch.bool, shape) for shape in shapes
        ]:
            raise ValueError(
                f"constraints must be three bool tensors of shapes {shapes}, allowed pairs, first and last tags; got "
                f"{[(t.dtype, tuple(t.shape)) for t in constraints]}. danlu.math.allowed_transitions makes them."
            )
        for name, tensor in zip(("allowed", "allowed_start", "allowed_end"), given, strict=True):
            self.register_buffer(name, tensor, persistent=False)

    def extra_repr(self) -> str:
        """What print(model) shows."""
        return f"{self.num_tags}, constraints={self.allowed is not None}, start_end={self.start is not None}"

    def scores(self) -> tuple[Tensor, Tensor, Tensor]:
        """Transitions, start and end as they count: with -inf where the constraints forbid."""
        zeros = self.transitions.new_zeros(self.num_tags)
        values = (
            (self.transitions, self.allowed),
            (zeros if self.start is None else self.start, self.allowed_start),
            (zeros if self.end is None else self.end, self.allowed_end),
        )
        g, s, e = (v if allowed is None else v.masked_fill(~allowed, -torch.inf) for v, allowed in values)
        return g, s, e

    def forward(self, emissions: Tensor, tags: Tensor, mask: Tensor | None = None, reduction: str = "mean") -> Tensor:
        """The loss, see `crf_nll`: emissions (B, T, K), tags (B, T), mask (B, T) bool."""
        return crf_nll(emissions, tags, *self.scores(), mask, reduction)

    def log_prob(self, emissions: Tensor, tags: Tensor, mask: Tensor | None = None) -> Tensor:
        """Log-probability of the paths, (B,)."""
        return -crf_nll(emissions, tags, *self.scores(), mask, "none")

    def log_partition(self, emissions: Tensor, mask: Tensor | None = None) -> Tensor:
        """Log Z, (B,), see `crf_log_partition`."""
        return crf_log_partition(emissions, *self.scores(), mask)

    def marginals(self, emissions: Tensor, mask: Tensor | None = None) -> Tensor:
        """Probability of each tag at each step, (B, T, K), see `crf_marginals`."""
        return crf_marginals(emissions, *self.scores(), mask)

    def entropy(self, emissions: Tensor, mask: Tensor | None = None) -> Tensor:
        """Entropy of the distribution over paths in nats, (B,), see `danlu.math.chain_entropy`."""
        with full_precision(emissions):
            return chain_entropy(emissions, *self.scores(), mask)

    def decode(self, emissions: Tensor, mask: Tensor | None = None) -> Tensor:
        """The best path, (B, T) int64, -1 at masked steps, see `viterbi`."""
        return viterbi(emissions, *self.scores(), mask)[0]

    def decode_nbest(self, emissions: Tensor, mask: Tensor | None = None, n: int = 2) -> tuple[Tensor, Tensor]:
        """The n best paths (B, n, T) and their scores (B, n), see `viterbi_nbest`."""
        return viterbi_nbest(emissions, *self.scores(), mask, n)

    def sample(
        self,
        emissions: Tensor,
        mask: Tensor | None = None,
        num_samples: int = 1,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Random paths (B, num_samples, T), see `sample_paths`."""
        return sample_paths(emissions, *self.scores(), mask, num_samples, generator)
