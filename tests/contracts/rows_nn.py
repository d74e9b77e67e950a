"""Contract rows of danlu.nn: one a public callable."""

import functools
from collections.abc import Callable

import torch
from contract import Row

from danlu import nn
from danlu.nn.layout import Group

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

# positions


def _places(dtype: torch.dtype) -> tuple[torch.Tensor, ...]:
    return (torch.tensor([[0.0, 1.0, 5.0]]).to(dtype),)


ROWS += [
    Row("sinusoidal_positions", lambda: lambda p: nn.sinusoidal_positions(p, 4), _places, (1, 3, 4)),
    Row("rotary_angles", lambda: lambda p: nn.rotary_angles(p, 4), _places, (1, 3, 4)),
    Row(
        "apply_rotary",
        lambda: nn.apply_rotary,
        lambda dtype: (_normal(2, 3, 4, dtype=dtype), *nn.rotary_angles(torch.arange(3), 4)),
        (2, 3, 4),
    ),
    Row(
        "clipped_distances",
        lambda: lambda q, k: nn.clipped_distances(q, k, 2),
        lambda dtype: (torch.arange(3), torch.arange(5)),
        (3, 5),
    ),
    Row("t5_buckets", lambda: lambda d: nn.t5_buckets(d, True), lambda dtype: (torch.arange(-9, 9),), (18,)),
    Row(
        "hierarchical_positions",
        lambda: lambda table: nn.hierarchical_positions(table, 0.4, 7),
        lambda dtype: (_normal(3, 4, dtype=dtype),),
        (7, 4),
    ),
]

# global_pointer, pooling


def _spans(dtype: torch.dtype) -> tuple[torch.Tensor, ...]:
    return _normal(2, 2, 4, 4, dtype=dtype), _KEEP


def _decoded(logits: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    return torch.tensor([len(spans) for spans in nn.decode_spans(logits, mask)])


ROWS += [
    # scores without masks: a masked one is -inf, and the contract wants finite outputs
    Row(
        "GlobalPointer",
        lambda: nn.GlobalPointer(5, 2, 6, lower_triangle_masked=False),
        lambda dtype: (_normal(2, 4, 5, dtype=dtype),),
        (2, 2, 4, 4),
    ),
    Row(
        "EfficientGlobalPointer",
        lambda: nn.EfficientGlobalPointer(5, 2, 6, lower_triangle_masked=False),
        lambda dtype: (_normal(2, 4, 5, dtype=dtype),),
        (2, 2, 4, 4),
    ),
    Row("decode_spans", lambda: _decoded, _spans, (2,), no_compile="returns lists, whose lengths depend on the data"),
    Row("pool", lambda: nn.pool, _sequence, (2, 5)),
    Row("pool[max]", lambda: lambda *a: nn.pool(*a, "max"), _sequence, (2, 5)),
    Row("pool[cls]", lambda: lambda *a: nn.pool(*a, "cls"), _sequence, (2, 5)),
    Row(
        "pool[first_last_mean]",
        lambda: lambda a, b, mask: nn.pool([a, b], mask, "first_last_mean"),
        lambda dtype: (_normal(2, 4, 5, dtype=dtype), _normal(2, 4, 5, dtype=dtype), _KEEP),
        (2, 5),
    ),
]

# conditional_norm, steering


def _conditioned(dtype: torch.dtype) -> tuple[torch.Tensor, ...]:
    return _normal(2, 4, 5, dtype=dtype), _normal(2, 3, dtype=dtype)


def _trained(kind: str = "layer", hidden: int | None = None) -> nn.Norm:
    norm = nn.Norm(5, kind=kind, condition_dim=3, condition_hidden=hidden, condition_activation="relu")
    for name, parameter in norm.named_parameters():
        if name.startswith("cond_"):
            torch.nn.init.normal_(parameter, std=0.5)
    return norm


class _Steered(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = torch.nn.Sequential(torch.nn.Linear(5, 6), torch.nn.LayerNorm(6))
        nn.add_condition(self.inner, 3)

    def forward(self, x: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        with nn.condition(value):
            return self.inner(x)


def _baked() -> torch.nn.Module:
    return nn.bake(_Steered().inner, torch.ones(3))


ROWS += [
    Row("Norm", lambda: nn.Norm(5), lambda dtype: _conditioned(dtype)[:1], (2, 4, 5)),
    Row("Norm[rms]", lambda: nn.Norm(5, kind="rms"), lambda dtype: _conditioned(dtype)[:1], (2, 4, 5)),
    Row("Norm[condition]", _trained, _conditioned, (2, 4, 5)),
    Row("Norm[hidden]", lambda: _trained("plain_rms", 2), _conditioned, (2, 4, 5)),
    Row(
        "Norm[rows]",
        _trained,
        lambda dtype: (_normal(4, 5, dtype=dtype), _normal(2, 3, dtype=dtype), torch.tensor([0, 1, 1, 0])),
        (4, 5),
    ),
    Row("add_condition", _Steered, _conditioned, (2, 4, 6)),
    Row("condition", _Steered, _conditioned, (2, 4, 6)),
    Row("bake", _baked, lambda dtype: _conditioned(dtype)[:1], (2, 4, 6)),
    Row(
        "guided_logits",
        lambda: lambda a, b: nn.guided_logits(a, b, 2.0),
        lambda dtype: (_normal(2, 5, dtype=dtype), -_normal(2, 5, dtype=dtype)),
        (2, 5),
    ),
]

# self_terminating


def _next_tokens(dtype: torch.dtype) -> tuple[torch.Tensor, ...]:
    return (_normal(2, 4, 5, dtype=dtype),)  # without a mask: outside it a log-probability is -inf


ROWS += [
    Row("SelfTerminatingHead", lambda: nn.SelfTerminatingHead(5, 6, end_id=1), _next_tokens, (2, 4, 6)),
    Row("SelfTerminatingHead[st]", lambda: nn.SelfTerminatingHead(5, 6, 1, kind="st"), _next_tokens, (2, 4, 6)),
    Row(
        "self_terminating_log_probs",
        lambda: lambda x: nn.self_terminating_log_probs(x, 1, 0.01),
        _next_tokens,
        (2, 4, 5),
    ),
    Row(
        "guaranteed_steps",
        lambda: lambda x: x[:, 0, 0] * nn.guaranteed_steps(0.5),
        _next_tokens,
        (2,),
    ),
]

# attention, feed_forward, gated_attention_unit, layout

_HEADS = (2, 3, 5, 4)
ROWS += [
    Row("MultiHeadAttention", lambda: nn.MultiHeadAttention(5, 2, 3, 3), _sequence, (2, 4, 5)),
    Row("GatedAttentionUnit", lambda: nn.GatedAttentionUnit(5, 6, 4), _sequence, (2, 4, 5)),
    Row("GatedAttentionUnit[bias]", lambda: nn.GatedAttentionUnit(5, 6, 4, bias=True, normalization="squared_relu"),
        _sequence, (2, 4, 5)),
    Row("FeedForward", lambda: nn.FeedForward(5, 7), lambda dtype: _sequence(dtype)[:1], (2, 4, 5)),
    Row("FeedForward[gated]", lambda: nn.FeedForward(5, 7, "silu", gated=True), lambda dtype: _sequence(dtype)[:1],
        (2, 4, 5)),
    Row("attend", lambda: lambda *qkv: nn.attend(*qkv)[0], lambda dtype: (_normal(*_HEADS, dtype=dtype),) * 3, _HEADS),
    Row("unilm_mask", lambda: nn.unilm_mask, lambda dtype: (torch.tensor([[0, 0, 1]]),), (1, 3, 3)),
    Row("causal_mask", lambda: lambda x: nn.causal_mask(len(x), len(x)), lambda dtype: (torch.zeros(3),), (3, 3)),
]  # fmt: skip

# packed_linear


def _linear() -> torch.nn.Linear:
    torch.manual_seed(0)
    return torch.nn.Linear(5, 6)


ROWS += [
    Row(
        "PackedLinear",
        lambda: nn.PackedLinear(_linear(), activation="gelu"),
        lambda d: (_normal(2, 3, 5, dtype=d),),
        (2, 3, 6),
    ),
    Row("PackedLinear[many]", lambda: nn.PackedLinear(_linear()), lambda d: (_normal(20, 5, dtype=d),), (20, 6)),
    Row(
        "pack_linears",
        lambda: functools.partial(lambda layer, x: nn.pack_linears(torch.nn.Sequential(layer))(x), _linear()),
        lambda d: (_normal(2, 5, dtype=d),),
        (2, 6),
        no_compile="it changes a model; the model it makes is the PackedLinear above",
    ),
]

# span_pointer


def _pointed(dtype: torch.dtype) -> tuple[torch.Tensor, ...]:
    return _normal(2, 4, 2, dtype=dtype), _KEEP


def _found(start: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    spans = nn.best_spans(start, start.flip(1), mask, 2, num=3)
    return torch.tensor([[first, last] for row in spans for first, last, _ in row])


ROWS += [
    Row("SpanPointer", lambda: nn.SpanPointer(5), lambda d: (_normal(2, 4, 5, dtype=d),), (2, 4, 2)),
    Row(
        "span_log_probs",
        lambda: nn.span_log_probs,
        lambda d: (_normal(2, 4, 2, dtype=d), torch.ones(2, 4).bool()),  # outside the candidates it is -inf
        (2, 4, 2),
    ),
    Row(
        "span_nll",
        lambda: lambda x, keep: nn.span_nll(x, torch.tensor([[1, 2], [0, 0]]), keep),
        _pointed,
        (),
    ),
    Row(
        "best_spans",
        lambda: _found,
        lambda d: (_normal(2, 4, dtype=d), _KEEP),
        (5, 2),
        no_compile="returns lists, whose lengths depend on the data",
    ),
]

# dropout, packed_attention


ROWS += [
    Row(
        "dropout",
        lambda: lambda x: nn.dropout(x, 0.5, generator=torch.Generator().manual_seed(0)),
        lambda d: (_normal(3, 4, dtype=d),),
        (3, 4),
        no_compile="the row makes a generator inside, which a graph cannot; DGCNN compiles with dropout",
    ),
    Row(
        "packed_attention",
        lambda: lambda *x: nn.packed_attention(*x, [Group(2, 1), Group(1, 4)], scale=0.5),
        lambda d: tuple(_normal(6, 2, size, dtype=d) for size in (3, 3, 5)),
        (6, 2, 5),
        no_compile="layers call it outside of torch.compile alone",
    ),
]

# spectral_norm


def _normalised(method: str = "true") -> torch.nn.Module:
    generator = torch.Generator().manual_seed(0)
    layer = torch.nn.Conv1d(5, 6, 3, padding=1)
    return nn.spectral_norm(layer, method=method, input_size=4, generator=generator)


def _along_time(dtype: torch.dtype) -> tuple[torch.Tensor, ...]:
    return (_normal(2, 5, 4, dtype=dtype),)


ROWS += [
    Row("spectral_norm", lambda: _normalised().eval(), _along_time, (2, 6, 4)),
    Row("spectral_norm[bound]", lambda: _normalised("bound").eval(), _along_time, (2, 6, 4)),
    Row(
        "SpectralNorm",
        lambda: nn.SpectralNorm(torch.nn.Linear(5, 6), _normal(6, 5, dtype=torch.float32)).eval(),
        lambda dtype: (_normal(6, 5, dtype=dtype),),
        (6, 5),
    ),
]

# synthesizer, synthetic_scores


def _rows_of_tokens(dtype: torch.dtype) -> tuple[torch.Tensor, ...]:
    return _normal(2, 4, 6, dtype=dtype), _KEEP


def _tables(dtype: torch.dtype) -> tuple[torch.Tensor, ...]:
    return _normal(2, 4, 6, dtype=dtype), *(
        _normal(*size, dtype=dtype) for size in ((2, 3, 6), (2, 3), (2, 3, 5), (2, 5))
    )


ROWS += [
    Row(
        f"SynthesizerAttention[{mode}]",
        lambda mode=mode: nn.SynthesizerAttention(6, 2, mode, 6, rank=3),
        _rows_of_tokens,
        (2, 4, 6),
    )
    for mode in (*nn.SYNTHESIZER_MODES, "random+vanilla", "dense+factorized_random+factorized_dense")
]
ROWS += [
    Row("dense_scores", lambda: nn.dense_scores, _tables, (2, 2, 4, 4)),
    Row(
        "factorized_dense_scores",
        lambda: nn.factorized_dense_scores,
        lambda dtype: (_normal(2, 4, 2, dtype=dtype), _normal(2, 4, 3, dtype=dtype)),
        (2, 4, 4),
    ),
    Row(
        "factorized_random_scores",
        lambda: lambda a, b: nn.factorized_random_scores(a, b, 3),
        lambda dtype: (_normal(2, 4, 3, dtype=dtype), _normal(2, 4, 3, dtype=dtype)),
        (1, 2, 3, 3),
    ),
    Row(
        "mix_scores",
        lambda: lambda a, b, logits: nn.mix_scores([a, b], logits),
        lambda dtype: (_normal(2, 2, 3, 3, dtype=dtype), _normal(1, 2, 3, 3, dtype=dtype), _normal(2, 2, dtype=dtype)),
        (2, 2, 3, 3),
    ),
    Row(
        "synthesizer_weights",
        lambda: lambda scores, keep: nn.synthesizer_weights(scores, keep[:, None, None, :]),
        lambda dtype: (_normal(2, 2, 4, 4, dtype=dtype), _KEEP),
        (2, 2, 4, 4),
    ),
    Row(
        "synthesizer_attention",
        lambda: lambda scores, value, keep: nn.synthesizer_attention(scores, value, keep[:, None, None, :]),
        lambda dtype: (_normal(1, 2, 4, 4, dtype=dtype), _normal(2, 2, 4, 3, dtype=dtype), _KEEP),
        (2, 2, 4, 3),
    ),
]

# ode_systems, ode_cell, ode_fit, ode_uncertainty, aquarium


def _ode_amounts(*numbers: float) -> Callable[[torch.dtype], tuple[torch.Tensor, ...]]:
    return lambda dtype: (0.0, torch.tensor([numbers, numbers]).to(dtype))


def _ode_growth(dtype: torch.dtype) -> tuple[torch.Tensor, ...]:
    times = torch.arange(1.0, 12.0)
    return times, (nn.Logistic.solution(times, 1.0, 0.5, 9.0) + 0.1 * torch.sin(7 * times))[:, None].to(dtype)


def _ode_fit(times: torch.Tensor, values: torch.Tensor) -> nn.ODEFit:
    return nn.fit_ode(nn.Logistic(r=0.4, capacity=8.0), nn.Observations(times, values), torch.ones(1), step=1.0)


def _ode_fitted(
    draw: Callable[[nn.ODEFit, torch.Generator], torch.Tensor],
) -> Callable[[], Callable[..., torch.Tensor]]:
    return lambda: lambda *data: draw(_ode_fit(*data), torch.Generator().manual_seed(0)).float()


_ODE_NO_COMPILE = "dual numbers and a loop that ends by itself; the solver inside may be compiled"

ROWS += [
    Row("ODESystem", lambda: nn.Logistic(r=0.1, capacity=5.0), _ode_amounts(2.0), (2, 1)),
    Row("Logistic", lambda: nn.Logistic(r=0.1, capacity=5.0), _ode_amounts(2.0), (2, 1)),
    Row(
        "Competition", lambda: nn.Competition(r1=1, r2=2, a1=0.5, a2=1, b1=0.1, b2=0.2), _ode_amounts(2.0, 1.0), (2, 2)
    ),
    Row("PredatorPrey", lambda: nn.PredatorPrey(alpha=1, beta=1, gamma=2, delta=1), _ode_amounts(2.0, 1.0), (2, 2)),
    Row("Pendulum", lambda: nn.Pendulum(stiffness=1.0, damping=0.1), _ode_amounts(0.5, -1.0), (2, 2)),
    Row("Aquarium", lambda: nn.Aquarium(), _ode_amounts(0.5, 1.0, 5.0, 0.25, 0.125), (2, 5)),
    Row("as_nitrogen", lambda: lambda t, x: nn.as_nitrogen(x, "NO3"), _ode_amounts(62.0), (2, 1)),
    Row("first_crossing", lambda: lambda t, v: nn.first_crossing(t, v, 4.0), _ode_growth, (1,)),
    Row(
        "scan",
        lambda: lambda x, y: nn.scan(lambda u, s, k: torch.tanh(u + s), y, x, mask=_KEEP),
        lambda dtype: (_normal(2, 4, 3, dtype=dtype), _normal(2, 3, dtype=dtype)),
        (2, 4, 3),
    ),
    Row(
        "ODECell",
        lambda: nn.ODECell(nn.Logistic(r=0.1, capacity=5.0), 0.5),
        lambda dtype: (None, torch.tensor([[2.0], [3.0]]).to(dtype), 2),
        (2, 1),
    ),
    Row(
        "SolverRNN",
        lambda: nn.SolverRNN(nn.Logistic(r=0.1, capacity=5.0), 0.5),
        lambda dtype: (torch.tensor([[2.0], [3.0]]).to(dtype), None, 3),
        (2, 3, 1),
    ),
    Row("fit_ode", _ode_fitted(lambda fit, g: fit.estimate), _ode_growth, (2,), no_compile=_ODE_NO_COMPILE),
    Row(
        "bootstrap_ode",
        _ode_fitted(lambda fit, g: nn.bootstrap_ode(fit, 3, generator=g).estimate),
        _ode_growth,
        (3, 2),
        no_compile=_ODE_NO_COMPILE,
    ),
    Row(
        "profile_ode",
        _ode_fitted(lambda fit, g: nn.profile_ode(fit, "r", 3)[0]),
        _ode_growth,
        (3,),
        no_compile=_ODE_NO_COMPILE,
    ),
    Row(
        "sample_ode",
        _ode_fitted(lambda fit, g: nn.sample_ode(fit, 3, g)[0]),
        _ode_growth,
        (3, 2),
        no_compile=_ODE_NO_COMPILE,
    ),
    Row(
        "ode_band",
        _ode_fitted(lambda fit, g: nn.ode_band(fit, torch.tensor([1.0, 2.0]), samples=5, generator=g)[1]),
        _ode_growth,
        (2, 1),
        no_compile=_ODE_NO_COMPILE,
    ),
]

# nystrom, linear attention and the kinds of attention


def _heads_of_attention(dtype: torch.dtype) -> tuple[torch.Tensor, ...]:
    return tuple(_normal(2, 2, 6, 4, dtype=dtype) * size for size in (1.0, 0.5, 2.0))


ROWS += [
    Row(
        f"nystrom_attention[{mode}]",
        functools.partial(
            lambda mode: lambda q, k, v, keep: nn.nystrom_attention(q, k, v, 2, mask=keep, mode=mode, pinv=2),
            mode,
        ),
        lambda dtype: (*_heads_of_attention(dtype), torch.arange(6) < torch.tensor([[6], [4]])),
        (2, 2, 6, 4),
    )
    for mode in ("nystrom", "landmark", "double_softmax")
]
ROWS += [
    Row(
        "nystrom_factors",
        lambda: lambda q, k: nn.nystrom_factors(q, k, 2, pinv=2),
        lambda dtype: _heads_of_attention(dtype)[:2],
        (2, 2, 6, 2),
    ),
    Row(
        "NystromAttention",
        lambda: nn.NystromAttention(4, 2, 2, 3, pinv=2),
        lambda dtype: (_normal(2, 6, 4, dtype=dtype),),
        (2, 6, 4),
    ),
    Row(
        "segment_means",
        lambda: lambda x: nn.segment_means(x, 4),
        lambda dtype: _heads_of_attention(dtype)[:1],
        (2, 2, 4, 4),
    ),
    Row("linear_attention", lambda: nn.linear_attention, _heads_of_attention, (2, 2, 6, 4)),
    Row(
        "linear_attention[causal]",
        lambda: lambda q, k, v: nn.linear_attention(q, k, v, causal=True),
        _heads_of_attention,
        (2, 2, 6, 4),
    ),
    Row("elu_log_features", lambda: nn.elu_log_features, lambda dtype: (_normal(2, 4, dtype=dtype),), (2, 4)),
    Row(
        "favor_log_features",
        lambda: nn.favor_log_features,
        lambda dtype: (_normal(2, 4, dtype=dtype), _normal(3, 4, dtype=dtype)),
        (2, 3),
    ),
    Row(
        "orthogonal_projection",
        lambda: lambda: nn.orthogonal_projection(3, 2, torch.Generator().manual_seed(0)),
        lambda dtype: (),
        (3, 2),
        no_compile="draws from a generator",
    ),
]
ROWS += [
    Row(
        f"{owner}[{kind}]",
        functools.partial(lambda kind: nn.build_attention(kind, 4, 2, 2, 2, max_len=6), kind),
        lambda dtype: (_normal(2, 6, 4, dtype=dtype), torch.arange(6) < torch.tensor([[6], [4]])),
        (2, 6, 4),
    )
    for owner, kind in (
        ("build_attention", "softmax"),
        ("LowCostAttention", "nystrom"),
        ("LowCostAttention", "performer"),
        ("SyntheticAttention", "synthesizer_dense"),
    )
]  # fmt: skip

# coupling, actnorm, invertible layers and the 1x1 convolution


def _image(*size: int) -> Callable[[torch.dtype], tuple[torch.Tensor, ...]]:
    return lambda dtype: (_normal(*size, dtype=dtype),)


def _coupling(split: str, additive: bool = False) -> nn.Coupling:
    kept, moved = nn.coupling_sizes(4, split)
    return nn.Coupling(torch.nn.Conv2d(kept, moved * (1 if additive else 2), 1), split, additive=additive)


def _rotated(seed: int = 0) -> nn.InvertibleLinear:
    return nn.InvertibleLinear(4, generator=torch.Generator().manual_seed(seed))


ROWS += [
    Row("Coupling", lambda: _coupling("half"), _image(2, 4, 3, 3), (2, 4, 3, 3)),
    Row("Coupling[even_odd]", lambda: _coupling("even_odd"), _image(2, 4, 3, 3), (2, 4, 3, 3)),
    Row("Coupling[checkerboard]", lambda: _coupling("checkerboard"), _image(2, 4, 3, 3), (2, 4, 3, 3)),
    Row("Coupling[additive]", lambda: _coupling("half", True), _image(2, 4, 3, 3), (2, 4, 3, 3)),
    Row(
        "affine_coupling",
        lambda: nn.affine_coupling,
        lambda dtype: tuple(_normal(2, 3, dtype=dtype) * size for size in (1.0, 0.5, 0.25)),
        (2, 3),
    ),
    Row("coupling_log_scale", lambda: nn.coupling_log_scale, _image(2, 3), (2, 3)),
    Row("coupling_sizes", lambda: lambda: torch.tensor(nn.coupling_sizes(5)), lambda dtype: (), (2,)),
    Row("checkerboard", lambda: lambda: nn.checkerboard(2, 3), lambda dtype: (), (2, 3)),
    Row("ActNorm", lambda: nn.ActNorm(4), _image(5, 4, 3, 3), (5, 4, 3, 3)),
    Row("ActNorm[scale]", lambda: nn.ActNorm(4, init="zeros", shift=False), _image(5, 4), (5, 4)),
    Row("standardize_channels", lambda: nn.standardize_channels, _image(5, 4, 3), (4,)),
    Row("InvertibleSequential", lambda: nn.InvertibleSequential([_rotated(), _rotated(1)]), _image(2, 4), (2, 4)),
    Row("ChannelPermutation", lambda: nn.ChannelPermutation(4), _image(2, 4, 3), (2, 4, 3)),
    Row("Squeeze", lambda: nn.Squeeze(), _image(2, 1, 4, 6), (2, 4, 2, 3)),
    Row("Flatten", lambda: nn.Flatten((1, 2, 3)), _image(2, 1, 2, 3), (2, 6)),
    Row("channel_log_det", lambda: nn.channel_log_det, lambda dtype: (*_image(2, 3, 4)(dtype), torch.ones(3)), (2,)),
    Row("InvertibleLinear", _rotated, _image(2, 4, 3, 3), (2, 4, 3, 3)),
    Row(
        "channel_linear",
        lambda: nn.channel_linear,
        lambda dtype: (_normal(2, 4, 3, dtype=dtype), _normal(5, 4, dtype=dtype), _normal(5, dtype=dtype)),
        (2, 5, 3),
    ),
    Row(
        "channel_solve",
        lambda: nn.channel_solve,
        lambda dtype: (_normal(2, 4, 3, dtype=dtype), 0.1 * _normal(4, 4, dtype=dtype), torch.eye(4).to(dtype)),
        (2, 4, 3),
    ),
    Row(
        "random_rotation",
        lambda: lambda: nn.random_rotation(3, torch.Generator().manual_seed(0)).float(),
        lambda dtype: (),
        (3, 3),
        no_compile="draws from a generator",
    ),
]

# modulated_norm, equalized, self_modulation


def _modulated_inputs(dtype: torch.dtype) -> tuple[torch.Tensor, ...]:
    return _normal(4, 3, 2, 5, dtype=dtype), _normal(4, 6, dtype=dtype)


def _small_generator() -> torch.nn.Module:
    return torch.nn.Sequential(torch.nn.ConvTranspose2d(6, 3, 2), torch.nn.BatchNorm2d(3), torch.nn.Tanh())


ROWS += [
    Row("ModulatedNorm", lambda: nn.ModulatedNorm(3), _image(4, 3, 2, 5), (4, 3, 2, 5)),
    Row("ModulatedNorm[condition]", lambda: nn.ModulatedNorm(3, 6), _modulated_inputs, (4, 3, 2, 5)),
    Row("ModulatedNorm[instance]", lambda: nn.ModulatedNorm(3, 6, "instance"), _modulated_inputs, (4, 3, 2, 5)),
    Row("ModulatedNorm[layer]", lambda: nn.ModulatedNorm(3, 6, "layer", None), _modulated_inputs, (4, 3, 2, 5)),
    Row("equalized", lambda: nn.equalized(torch.nn.Linear(5, 2)), _image(4, 5), (4, 2)),
    Row("SelfModulated", lambda: nn.SelfModulated(_small_generator(), 6), _image(4, 6, 1, 1), (4, 3, 2, 2)),
]
