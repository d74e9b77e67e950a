"""Contract rows of danlu.math: one a public callable."""

import torch
from contract import Row

from danlu import math

ROWS: list[Row] = []

# semiring


def _chain(dtype: torch.dtype) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(0)
    shapes = [(2, 4, 3), (3, 3), (3,), (3,)]
    keep = torch.tensor([[True, True, True, True], [True, False, True, False]])
    return *(torch.randn(shape, generator=generator).to(dtype) for shape in shapes), keep


ROWS += [
    Row("chain_forward", lambda: math.chain_forward, _chain, (2, 4, 3)),
    Row("chain_forward[scan]", lambda: lambda *a: math.chain_forward(*a, method="scan"), _chain, (2, 4, 3)),
    Row("chain_backward", lambda: lambda f, g, s, e, m: math.chain_backward(f, g, e, m), _chain, (2, 4, 3)),
    Row("chain_marginals", lambda: math.chain_marginals, _chain, (2, 4, 3)),
    Row("chain_entropy", lambda: math.chain_entropy, _chain, (2,)),
    Row("logsumexp", lambda: lambda f, *rest: math.logsumexp(f, 2), _chain, (2, 4), bfloat16_tolerance=0.05),
]

# activations


def _line(dtype: torch.dtype) -> tuple[torch.Tensor, ...]:
    return (torch.linspace(-4, 4, 9).to(dtype),)


ROWS += [
    Row("gelu", lambda: math.gelu, _line, (9,)),
    Row("gelu[tanh]", lambda: lambda x: math.gelu(x, "tanh"), _line, (9,)),
    Row("gelu[sigmoid]", lambda: lambda x: math.gelu(x, "sigmoid"), _line, (9,)),
    Row("gelu_odd", lambda: math.gelu_odd, _line, (9,)),
    Row("activation", lambda: math.activation("relu2"), _line, (9,), bfloat16_tolerance=0.1),
]

# attention_normalize


def _scores(dtype: torch.dtype) -> tuple[torch.Tensor, ...]:
    scores = torch.randn(2, 3, 4, 5, generator=torch.Generator().manual_seed(0)).to(dtype)
    return scores, torch.tensor([[[[True, True, False, True, True]]], [[[False] * 5]]])


ROWS += [
    Row("attention_normalize", lambda: math.attention_normalize, _scores, (2, 3, 4, 5)),
    Row(
        "attention_normalize[squared_relu]",
        lambda: lambda *a: math.attention_normalize(*a, "squared_relu"),
        _scores,
        (2, 3, 4, 5),
    ),
    Row(
        "attention_normalize[softmax_plus]",
        lambda: lambda *a: math.attention_normalize(*a, "softmax_plus"),
        _scores,
        (2, 3, 4, 5),
    ),
    Row("softmax_plus_scale", lambda: math.softmax_plus_scale, lambda dtype: (torch.tensor([3, 17, 512]),), (3,)),
]

# smooth, smooth_step, smooth_topk


def _rows(dtype: torch.dtype) -> tuple[torch.Tensor, ...]:
    return (torch.randn(3, 5, generator=torch.Generator().manual_seed(0)).to(dtype),)


ROWS += [
    Row("smooth_max", lambda: math.smooth_max, _rows, (3,)),
    Row("smooth_max[mean]", lambda: lambda x: math.smooth_max(x, method="mean"), _rows, (3,)),
    Row("smooth_min", lambda: math.smooth_min, _rows, (3,)),
    Row("smooth_onehot", lambda: math.smooth_onehot, _rows, (3, 5)),
    Row("smooth_argmax", lambda: math.smooth_argmax, _rows, (3,)),
    Row("smooth_rank", lambda: math.smooth_rank, _rows, (3, 5)),
    Row("smooth_relu", lambda: math.smooth_relu, _line, (9,)),
    Row("smooth_abs", lambda: math.smooth_abs, _line, (9,)),
    Row("smooth_abs[tanh]", lambda: lambda x: math.smooth_abs(x, method="tanh"), _line, (9,)),
    Row("smooth_step", lambda: math.smooth_step, _line, (9,)),
    Row("smooth_sign", lambda: math.smooth_sign, _line, (9,)),
    Row("smooth_floor", lambda: lambda x: math.smooth_floor(x, 2.0), _line, (9,)),
    Row("hard_forward", lambda: lambda x: math.hard_forward(x.round(), math.smooth_round(x)), _line, (9,)),
    Row("smooth_round", lambda: lambda x: math.smooth_round(x, 8.0), _line, (9,)),
]
ROWS += [
    Row(f"smooth_topk[{method}]", lambda method=method: lambda x: math.smooth_topk(x, 2, method=method), _rows, (3, 5))
    for method in math.TOPK_METHODS
]

# relaxation


def _logits(dtype: torch.dtype) -> tuple[torch.Tensor, ...]:
    return (torch.tensor([[3.0, -2.0, 0.5, 1.0], [-1.0, 0.25, -3.0, 2.5]]).to(dtype),)


def _noise() -> torch.Generator:
    return torch.Generator().manual_seed(0)


_DRAWS = "dynamo makes no generator; tests/math/test_relaxation.py compiles draws from the global stream"
ROWS += [
    Row("gumbel_max", lambda: lambda z: math.gumbel_max(z, 3, generator=_noise()), _logits, (3, 2), no_compile=_DRAWS),
    Row(
        "gumbel_softmax",
        lambda: lambda z: math.gumbel_softmax(z, generator=_noise()),
        _logits,
        (2, 4),
        no_compile=_DRAWS,
    ),
    Row(
        "gumbel_softmax[conditional]",
        lambda: lambda z: math.gumbel_softmax(z, 0.5, True, conditional_samples=2, generator=_noise()),
        _logits,
        (2, 4),
        no_compile=_DRAWS,
    ),
    Row(
        "relaxed_bernoulli",
        lambda: lambda z: math.relaxed_bernoulli(z, generator=_noise()),
        _logits,
        (2, 4),
        no_compile=_DRAWS,
    ),
    Row(
        "straight_through_bernoulli",
        lambda: lambda z: math.straight_through_bernoulli(z, _noise()),
        _logits,
        (2, 4),
        no_compile=_DRAWS,
    ),
    Row("straight_through_onehot", lambda: math.straight_through_onehot, _logits, (2, 4)),
]

# gradient_gram, gradient_weights, min_norm_point, nonnegative_minimum, task_direction


def _gram(dtype: torch.dtype) -> tuple[torch.Tensor, ...]:
    return (torch.tensor([[1.0, -0.5, 0.25], [-0.5, 4.0, -1.0], [0.25, -1.0, 2.0]], dtype=dtype),)


def _two_gradients(dtype: torch.dtype) -> tuple[torch.Tensor, ...]:
    return torch.tensor([1.0, 0.0, -2.0], dtype=dtype), torch.tensor([0.5, 1.0, 1.0], dtype=dtype)


_NUMPY = "solved by numpy on the CPU, outside of any graph"
ROWS += [
    Row("gram_matrix", lambda: lambda a, b: math.gram_matrix([[a], [b]]).float(), _two_gradients, (2, 2)),
    Row("gradient_cosines", lambda: math.gradient_cosines, _gram, (3, 3)),
    Row("normalized_weights", lambda: math.normalized_weights, _gram, (3,)),
    Row("pcgrad_weights", lambda: lambda q: math.pcgrad_weights(q, _noise()), _gram, (3,), no_compile=_DRAWS),
    Row("primary_weights", lambda: math.primary_weights, _gram, (3,), no_compile=_NUMPY),
    Row("dual_cone_weights", lambda: math.dual_cone_weights, _gram, (3,), no_compile=_NUMPY),
    Row("min_norm_weights", lambda: math.min_norm_weights, _gram, (3,), no_compile=_NUMPY),
    Row("nonnegative_minimum", lambda: lambda q: math.nonnegative_minimum(q, -q[0]), _gram, (3,), no_compile=_NUMPY),
    Row(
        "direction_weights",
        lambda: lambda q: math.direction_weights(q, "mgda", normalize=True).float(),
        _gram,
        (3,),
        no_compile=_NUMPY,
    ),
]

# conv_norm, singular


def _kernel(dtype: torch.dtype) -> tuple[torch.Tensor, ...]:
    return (torch.randn(3, 2, 3, 3, generator=torch.Generator().manual_seed(0)).to(dtype),)


ROWS += [
    Row("conv_norm", lambda: lambda w: math.conv_norm(w, 6, padding=1), _kernel, ()),
    Row("conv_norm[circular]", lambda: lambda w: math.conv_norm(w, 6, 1, 1, padding_mode="circular"), _kernel, ()),
    Row("conv_norm_bound", lambda: lambda w: math.conv_norm_bound(w, 2), _kernel, ()),
    Row("reshaped_norm", lambda: math.reshaped_norm, _kernel, ()),
    Row(
        "power_iteration",
        lambda: lambda w: math.power_iteration(w[0, 0].mv, w[0, 0].T.mv, w[0, 0, 0], 30).abs(),
        _kernel,
        (3,),
    ),
    Row(
        "top_singular",
        lambda: lambda w: math.top_singular(w[0, 0].float().mv, w[0, 0].float().T.mv, w[0, 0, 0].float())[0],
        _kernel,
        (),
    ),
]

# ode_steps, ode_solve, least_squares, fisher


def _ode_state(dtype: torch.dtype) -> tuple[torch.Tensor, ...]:
    return (torch.tensor([[1.0, 0.5], [2.0, -1.0]]).to(dtype),)


def _ode_turn(t: float, x: torch.Tensor) -> torch.Tensor:
    return torch.stack((x[..., 1], -x[..., 0]), -1)


def _ode_line(x: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    places = torch.arange(4.0)
    return x[..., :1] * places + x[..., 1:] - torch.tensor([1.0, 3.0, 5.0, 7.5])


_ODE_NO_COMPILE = "dual numbers, which dynamo leaves to eager"

ROWS += [
    Row("ode_step", lambda: lambda x: math.ode_step(_ode_turn, 0.0, x, 0.1), _ode_state, (2, 2)),
    Row("ode_step[dopri5]", lambda: lambda x: math.ode_step(_ode_turn, 0.0, x, 0.1, "dopri5"), _ode_state, (2, 2)),
    Row(
        "ode_step[trapezoid]",
        lambda: lambda x: math.ode_step(_ode_turn, 0.0, x, 0.1, "trapezoid"),
        _ode_state,
        (2, 2),
        no_compile="Newton's steps end when they are small, and their Jacobians are taken by autograd",
    ),
    Row("solve_ode", lambda: lambda x: math.solve_ode(_ode_turn, x, (0.0, 0.5, 2.0), step=0.1), _ode_state, (3, 2, 2)),
    Row(
        "solve_ode[dopri5]",
        lambda: lambda x: math.solve_ode(_ode_turn, x, (0.0, 0.5), "dopri5"),
        _ode_state,
        (2, 2, 2),
        no_compile="the number of steps depends on the values",
    ),
    Row(
        "rowwise_jacobian",
        lambda: lambda x: math.rowwise_jacobian(torch.sin, x)[1],
        _ode_state,
        (2, 2, 2),
        no_compile=_ODE_NO_COMPILE,
    ),
    Row(
        "levenberg_marquardt",
        lambda: lambda x: math.levenberg_marquardt(_ode_line, x).x,
        _ode_state,
        (2, 2),
        no_compile=_ODE_NO_COMPILE,
        no_bfloat16="least squares in eight bits of mantissa; start is float32 or better",
    ),
    Row(
        "fisher_covariance",
        lambda: math.fisher_covariance,
        lambda dtype: (torch.tensor([[2.0, 0.5], [0.0, 1.0], [1.0, 1.0]]).to(dtype),),
        (2, 2),
    ),
]

# moments


def _vectors(dtype: torch.dtype) -> tuple[torch.Tensor, ...]:
    return (torch.randn(6, 3, generator=torch.Generator().manual_seed(0)).to(dtype),)


ROWS += [
    Row("moments", lambda: lambda x: math.moments(x).covariance.float(), _vectors, (3, 3)),
    Row(
        "merge_moments",
        lambda: lambda x: math.merge_moments(math.moments(x[:2]), math.moments(x[2:])).covariance.float(),
        _vectors,
        (3, 3),
    ),
]

# sphere, clusters of directions


def _unit_rows(dtype: torch.dtype) -> tuple[torch.Tensor, ...]:
    rows = torch.randn(2, 4, 3, generator=torch.Generator().manual_seed(0))
    return (rows[0] / rows[0].norm(dim=1, keepdim=True)).to(dtype), rows[1].to(dtype)


def _groups(dtype: torch.dtype) -> tuple[torch.Tensor, ...]:
    return torch.tensor([0, 0, 1, 2, 2]), torch.tensor([1, 1, 1, 0, 2])


def _clusters(x: torch.Tensor) -> torch.Tensor:
    return math.spherical_kmeans(x, 2, generator=torch.Generator().manual_seed(0)).centres


ROWS += [
    Row("tangent", lambda: math.tangent, _unit_rows, (4, 3)),
    Row("angle_factor", lambda: math.angle_factor, _unit_rows, (4, 1)),
    Row("retract", lambda: lambda x, g: math.retract(x, 0.1 * math.tangent(x, g)), _unit_rows, (4, 3)),
    Row("retract[exp]", lambda: lambda x, g: math.retract(x, 0.1 * math.tangent(x, g), "exp"), _unit_rows, (4, 3)),
    Row("spherical_kmeans", lambda: _clusters, _vectors, (2, 3), no_compile="loops until no item moves"),
    Row("purity", lambda: lambda a, b: math.purity(a, b).float(), _groups, ()),
    Row("adjusted_rand_index", lambda: lambda a, b: math.adjusted_rand_index(a, b).float(), _groups, ()),
    Row(
        "normalized_mutual_information",
        lambda: lambda a, b: math.normalized_mutual_information(a, b).float(),
        _groups,
        (),
    ),
]

# pseudo_inverse


def _regular(dtype: torch.dtype) -> tuple[torch.Tensor, ...]:
    return ((torch.eye(3) + 0.2 * torch.ones(2, 3, 3)).to(dtype),)


ROWS += [
    Row("iterative_pinv", lambda: lambda a: math.iterative_pinv(a, noise=1e-3), _regular, (2, 3, 3)),
    Row("pseudo_inverse", lambda: lambda a: math.pseudo_inverse(a, 6), _regular, (2, 3, 3)),
    Row("pinv_residual", lambda: lambda a: math.pinv_residual(a, torch.eye(3)), _regular, (2,)),
]

# eisner, chu_liu_edmonds, dependency_tree, constituency_tree


def _arcs(dtype: torch.dtype) -> tuple[torch.Tensor, ...]:
    scores = torch.randn(2, 4, 4, generator=torch.Generator().manual_seed(0)).to(dtype)
    return scores, torch.tensor([[True, True, True, True], [True, False, True, False]])


_NUMPY = "circles are contracted in numpy, one sentence after the other"
ROWS += [
    Row("eisner", lambda: math.eisner, _arcs, (2, 4)),
    Row("eisner[several roots]", lambda: lambda s, m: math.eisner(s, m, False), _arcs, (2, 4)),
    Row("chu_liu_edmonds", lambda: math.chu_liu_edmonds, _arcs, (2, 4), no_compile=_NUMPY),
    Row("tree_score", lambda: lambda s, m: math.tree_score(s, torch.tensor([[2, 0, 2, 3]] * 2)), _arcs, (2,)),
    Row("span_values", lambda: lambda s, m: math.span_values(s).float(), _arcs, (2, 4, 4)),
    Row("cky", lambda: lambda s, m: math.cky(s, m.sum(1)), _arcs, (2, 4, 4)),
]

# discretized_logistic, logistic_mixture


def _grey_levels(dtype: torch.dtype) -> tuple[torch.Tensor, ...]:
    mean = torch.tensor([-1.0, 0.25, 0.5]).to(dtype)
    return torch.tensor([[0, 3, 15], [1, 14, 7]]), mean, torch.tensor([-1.0, 0.5, -2.0]).to(dtype)


def _rgb_levels(dtype: torch.dtype) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(0)
    shapes = [(2, 4), (2, 3, 4), (2, 3, 4), (2, 3, 4)]
    return torch.tensor([[0, 3, 15], [1, 14, 7]]), *(torch.randn(s, generator=generator).to(dtype) for s in shapes)


ROWS += [
    Row(
        "discretized_logistic_log_prob",
        lambda: lambda *a: math.discretized_logistic_log_prob(*a, 4),
        _grey_levels,
        (2, 3),
    ),
    Row(
        "discretized_logistic_sample",
        lambda: lambda k, *a: math.discretized_logistic_sample(*a, 4, _noise()),
        _grey_levels,
        (3,),
        no_compile=_DRAWS,
    ),
    Row("logistic_mixture_log_prob", lambda: lambda *a: math.logistic_mixture_log_prob(*a, bits=4), _rgb_levels, (2,)),
    Row(
        "logistic_mixture_sample",
        lambda: lambda k, *a: math.logistic_mixture_sample(*a, bits=4, generator=_noise()),
        _rgb_levels,
        (2, 3),
        no_compile=_DRAWS,
    ),
    Row(
        "split_logistic_mixture",
        lambda: lambda x: math.split_logistic_mixture(x, 1),
        lambda dtype: (torch.linspace(-1, 1, 24).reshape(2, 6, 2, 1).to(dtype),),
        (2, 2, 1, 2),
    ),
]

# importance, pareto_k, bits_per_dim


def _log_weights(dtype: torch.dtype) -> tuple[torch.Tensor, ...]:
    return (torch.randn(3, 40, generator=torch.Generator().manual_seed(0)).to(dtype),)


ROWS += [
    Row("log_mean_exp", lambda: math.log_mean_exp, _log_weights, (3,)),
    Row("effective_sample_size", lambda: math.effective_sample_size, _log_weights, (3,)),
    Row("importance_estimate", lambda: math.importance_estimate, _log_weights, (3,)),
    Row("jackknife_bound", lambda: math.jackknife_bound, _log_weights, (3,)),
    Row(
        "bootstrap_interval",
        lambda: lambda w: math.bootstrap_interval(w, num_replicates=20, generator=_noise()),
        _log_weights,
        (3,),
        no_compile=_DRAWS,
    ),
    Row("pareto_k", lambda: math.pareto_k, _log_weights, (3,)),
    Row("bits_per_dim", lambda: lambda w: math.bits_per_dim(w, 40), _log_weights, (3, 40)),
]

# f_convex, f_alpha, f_table, f_divergence


def _two_distributions(dtype: torch.dtype) -> tuple[torch.Tensor, ...]:
    p = torch.tensor([[0.5, 0.25, 0.25, 0.0], [0.125, 0.5, 0.25, 0.125]]).to(dtype)
    return p, torch.tensor([[0.25, 0.25, 0.25, 0.25], [0.5, 0.125, 0.25, 0.125]]).to(dtype)


def _log_ratios(dtype: torch.dtype) -> tuple[torch.Tensor, ...]:
    return torch.tensor([0.5, -1.0, 2.0]).to(dtype), torch.tensor([-0.5, 0.25]).to(dtype)


ROWS += [
    Row("f_divergence", lambda: math.f_divergence, _two_distributions, (2,)),
    Row("f_divergence[js]", lambda: lambda p, q: math.f_divergence(p, q, "js"), _two_distributions, (2,)),
    Row("f_activation", lambda: lambda v, w: math.f_activation(v, "gan"), _log_ratios, (3,)),
    Row("f_conjugate", lambda: lambda v, w: math.f_conjugate(v, "pearson"), _log_ratios, (3,)),
    Row(
        "f_conjugate[numeric]",
        lambda: lambda v, w: math.f_conjugate(v, "jeffreys"),
        _log_ratios,
        (3,),
        no_compile="dual numbers inside an autograd function",
    ),
    Row("f_bound", lambda: lambda v, w: math.f_bound(v, w, "squared_hellinger"), _log_ratios, ()),
    Row("f_swap", lambda: lambda v, w: math.f_swap("kl").activation(v), _log_ratios, (3,), no_compile="built once"),
    Row("alpha_divergence", lambda: lambda v, w: math.alpha_divergence(0.5).activation_conjugate(v), _log_ratios, (3,)),
    Row(
        "divergence_from_f",
        lambda: math.divergence_from_f(lambda u: u * u.log()).activation_conjugate,
        lambda d: _log_ratios(d)[:1],
        (3,),
    ),
]

# gaussian_divergence, gaussian_wasserstein, gaussian_diagonal, psd_sqrt


def _gaussians(dtype: torch.dtype) -> tuple[torch.Tensor, ...]:
    f = torch.randn(2, 3, 2, 2, generator=torch.Generator().manual_seed(0)) / 2
    cov = f @ f.mT + torch.eye(2)
    return f[0, :, 0].to(dtype), cov[0].to(dtype), f[1, :, 0].to(dtype), cov[1].to(dtype)


def _deviations(dtype: torch.dtype) -> tuple[torch.Tensor, ...]:
    mean_p, cov_p, mean_q, cov_q = _gaussians(torch.float32)
    stds = (cov.diagonal(dim1=1, dim2=2).sqrt() for cov in (cov_p, cov_q))
    std_p, std_q = (std.to(dtype) for std in stds)
    return mean_p.to(dtype), std_p, mean_q.to(dtype), std_q


ROWS += [
    Row("gaussian_kl", lambda: math.gaussian_kl, _gaussians, (3,)),
    Row("gaussian_jeffreys", lambda: math.gaussian_jeffreys, _gaussians, (3,)),
    Row("gaussian_chernoff", lambda: lambda *a: math.gaussian_chernoff(*a, alpha=0.3), _gaussians, (3,)),
    Row("gaussian_bhattacharyya", lambda: math.gaussian_bhattacharyya, _gaussians, (3,)),
    Row("gaussian_hellinger", lambda: math.gaussian_hellinger, _gaussians, (3,)),
    Row("gaussian_wasserstein", lambda: math.gaussian_wasserstein, _gaussians, (3,)),
    Row("gaussian_transport", lambda: lambda m, p, n, q: math.gaussian_transport(p, q), _gaussians, (3, 2, 2)),
    Row("gaussian_kl_diagonal", lambda: math.gaussian_kl_diagonal, _deviations, (3,)),
    Row("gaussian_bhattacharyya_diagonal", lambda: math.gaussian_bhattacharyya_diagonal, _deviations, (3,)),
    Row("gaussian_hellinger_diagonal", lambda: math.gaussian_hellinger_diagonal, _deviations, (3,)),
    Row("gaussian_wasserstein_diagonal", lambda: math.gaussian_wasserstein_diagonal, _deviations, (3,)),
    Row("psd_sqrt", lambda: lambda m, p, n, q: math.psd_sqrt(p), _gaussians, (3, 2, 2)),
]

# mode_coverage, ratio_calibration


def _near_modes(dtype: torch.dtype) -> tuple[torch.Tensor, ...]:
    modes = torch.tensor([[0.0, 0.0], [2.0, 0.0]], dtype=dtype)
    return torch.tensor([[0.25, 0.0], [2.0, 0.5], [9.0, 9.0]], dtype=dtype), modes


def _ratio_draws(dtype: torch.dtype) -> tuple[torch.Tensor, ...]:
    return torch.tensor([0.5, 2.0, -1.0, 1.5], dtype=dtype), torch.tensor([-0.5, 1.0, -2.0], dtype=dtype)


ROWS += [
    Row("mode_coverage", lambda: lambda *a: math.mode_coverage(*a, radius=1.0).counts, _near_modes, (2,)),
    Row(
        "ratio_calibration",
        lambda: lambda *a: math.ratio_calibration(*a, bins=2).observed.float(),
        _ratio_draws,
        (2,),
        no_compile="Newton's steps stop where they have converged: numbers are read in Python",
    ),
]

# frechet, kernel_distance, manifold_metrics


def _two_sets(dtype: torch.dtype) -> tuple[torch.Tensor, ...]:
    x, y = torch.randn(2, 16, 3, generator=torch.Generator().manual_seed(0))
    return x.to(dtype), (y[:14] + 0.5).to(dtype)


ROWS += [
    Row("frechet_distance", lambda: math.frechet_distance, _two_sets, ()),
    Row(
        "frechet_estimate",
        lambda: lambda x, y: math.frechet_estimate(x, y, 4, _noise()),
        _two_sets,
        (),
        no_compile=_DRAWS,
    ),
    Row("frechet_floor", lambda: lambda x, y: math.frechet_floor(x.mT @ x, 9, 8), _two_sets, ()),
    Row("kernel_distance", lambda: math.kernel_distance, _two_sets, ()),
    Row("kernel_estimate", lambda: math.kernel_estimate, _two_sets, ()),
    Row("precision_recall", lambda: lambda x, y: math.precision_recall(x, y, 2), _two_sets, ()),
    Row("density_coverage", lambda: lambda x, y: math.density_coverage(x, y, 2), _two_sets, ()),
]
