"""Contract rows of danlu.nn: one a public callable."""

import torch
from contract import Row

from danlu import nn

ROWS: list[Row] = []

# dgcnn, attention_pool, softmax_head, memm


def _normal(*shape: int, dtype: torch.dtype) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0)).to(dtype)


_KEEP = torch.tensor([[True, True, True, True], [True, False, True, False]])
_TAGS = torch.tensor([[0, 2, 1, 1], [2, -100, 0, -100]])


def _tagging(dtype: torch.dtype) -> tuple[torch.Tensor, ...]:
    return _normal(2, 4, 3, dtype=dtype), _TAGS, _KEEP


def _sequence(dtype: torch.dtype) -> tuple[torch.Tensor, ...]:
    return _normal(2, 4, 5, dtype=dtype), _KEEP


ROWS += [
    Row("DilatedGatedConv1d", lambda: nn.DilatedGatedConv1d(5, dilation=2), _sequence, (2, 4, 5)),
    Row("DilatedGatedConv1d[out_dim]", lambda: nn.DilatedGatedConv1d(5, 6, 5), _sequence, (2, 4, 6)),
    Row("DGCNN", lambda: nn.DGCNN(5, dilations=(1, 2, 1)), _sequence, (2, 4, 5)),
    Row("AttentionPool1d", lambda: nn.AttentionPool1d(5, hidden=4), _sequence, (2, 5)),
    Row(
        "attention_pool",
        lambda: nn.attention_pool,
        lambda dtype: (_normal(2, 4, 5, dtype=dtype), _normal(2, 4, dtype=dtype), _KEEP),
        (2, 5),
    ),
    Row("softmax_nll", lambda: nn.softmax_nll, _tagging, ()),
    Row("SoftmaxHead", lambda: nn.SoftmaxHead(3), _tagging, ()),
    Row("MEMM", lambda: nn.MEMM(3), _tagging, ()),
    Row("MEMM[bidirectional]", lambda: nn.MEMM(3, bidirectional=True), _tagging, ()),
    Row("MEMM[rank]", lambda: nn.MEMM(3, rank=2, bidirectional=True, compat="bert4keras"), _tagging, ()),
    Row(
        "memm_nll",
        lambda: nn.memm_nll,
        lambda dtype: (*_tagging(dtype)[:2], _normal(3, 3, dtype=dtype), _KEEP),
        (),
    ),
    Row(
        "memm_chain",
        lambda: nn.memm_chain,
        lambda dtype: (_normal(2, 4, 3, dtype=dtype), _normal(3, 3, dtype=dtype), _KEEP, True),
        (2, 4, 3),
    ),
]

# crf, crf_decode


def _scores(dtype: torch.dtype) -> tuple[torch.Tensor, ...]:
    return tuple(_normal(*shape, dtype=dtype) for shape in ((3, 3), (3,), (3,)))


def _chain(dtype: torch.dtype) -> tuple[torch.Tensor, ...]:
    return _normal(2, 4, 3, dtype=dtype), *_scores(dtype), _KEEP


ROWS += [
    Row("CRF", lambda: nn.CRF(3, init="glorot"), _tagging, ()),
    Row("CRF[author]", lambda: nn.CRF(3, start_end=False, init="glorot"), _tagging, ()),
    Row(
        "CRF[constraints]",
        lambda: nn.CRF(3, (torch.ones(3, 3).bool().triu_(-1), *torch.ones(2, 3).bool())),
        lambda dtype: (_normal(2, 4, 3, dtype=dtype), _TAGS.clamp_max(1), _KEEP),
        (),
    ),
    Row("crf_nll", lambda: nn.crf_nll, lambda dtype: (*_tagging(dtype)[:2], *_scores(dtype), _KEEP), ()),
    Row("crf_log_partition", lambda: nn.crf_log_partition, _chain, (2,)),
    Row("crf_marginals", lambda: nn.crf_marginals, _chain, (2, 4, 3)),
    Row("viterbi", lambda: nn.viterbi, _chain, (2, 4)),
    Row("viterbi_nbest", lambda: nn.viterbi_nbest, _chain, (2, 2, 4)),
    Row(
        "sample_paths",
        lambda: lambda *args: nn.sample_paths(*args, 3, torch.Generator().manual_seed(0)),
        _chain,
        (2, 3, 4),
    ),
]
