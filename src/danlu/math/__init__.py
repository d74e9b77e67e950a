"""Tensor functions without parameters."""

from danlu.math.activations import activation, activation_name, gelu
from danlu.math.answer_metrics import answer_f1, answer_match, answer_scores, answer_segments
from danlu.math.answer_vote import vote
from danlu.math.attention_normalize import attention_normalize, softmax_plus_scale
from danlu.math.bits_per_dim import bits_per_dim
from danlu.math.chain_trees import CHAINS, chain_heads, chain_tree
from danlu.math.chu_liu_edmonds import chu_liu_edmonds
from danlu.math.cluster_metrics import adjusted_rand_index, normalized_mutual_information, purity
from danlu.math.constituency_tree import cky, span_values, spans_tree, top_down_tree
from danlu.math.conv_norm import conv_norm, conv_norm_bound, reshaped_norm
from danlu.math.correlation import pearson, spearman, spearman_influence
from danlu.math.dependency_tree import is_projective, is_tree, tree_score
from danlu.math.discretized_logistic import discretized_logistic_log_prob, discretized_logistic_sample
from danlu.math.eisner import eisner
from danlu.math.evidence_features import (
    evidence_features,
    passage_overlap,
    question_overlap,
    window_edit_similarity,
    window_jaccard,
)
from danlu.math.f_alpha import alpha_divergence
from danlu.math.f_convex import FDivergence, divergence_from_f
from danlu.math.f_divergence import f_activation, f_bound, f_conjugate, f_divergence
from danlu.math.f_table import F_DIVERGENCES, as_f_divergence, f_swap
from danlu.math.fisher import fisher_covariance
from danlu.math.frechet import FrechetEstimate, frechet_distance, frechet_estimate, frechet_floor
from danlu.math.gaussian_diagonal import (
    gaussian_bhattacharyya_diagonal,
    gaussian_hellinger_diagonal,
    gaussian_kl_diagonal,
    gaussian_wasserstein_diagonal,
)
from danlu.math.gaussian_divergence import (
    gaussian_bhattacharyya,
    gaussian_chernoff,
    gaussian_hellinger,
    gaussian_jeffreys,
    gaussian_kl,
)
from danlu.math.gaussian_wasserstein import gaussian_transport, gaussian_wasserstein
from danlu.math.gelu_fit import GELU_ODD5, gelu_fit, gelu_odd, gelu_odd_error, gelu_series, gelu_table
from danlu.math.generation_metrics import bleu, distinct_n, lcs_length, position_accuracy, rouge_l, rouge_n
from danlu.math.gradient_gram import gram_matrix
from danlu.math.gradient_weights import (
    dual_cone_weights,
    gradient_cosines,
    normalized_weights,
    pcgrad_weights,
    primary_weights,
)
from danlu.math.importance import (
    BootstrapInterval,
    ImportanceEstimate,
    bootstrap_interval,
    dreg_hook,
    effective_sample_size,
    importance_estimate,
    jackknife_bound,
    log_mean_exp,
)
from danlu.math.kernel_distance import KernelEstimate, kernel_distance, kernel_estimate
from danlu.math.least_squares import LeastSquares, levenberg_marquardt, rowwise_jacobian
from danlu.math.logistic_mixture import (
    LogisticMixture,
    logistic_mixture_log_prob,
    logistic_mixture_sample,
    split_logistic_mixture,
)
from danlu.math.manifold_metrics import (
    DensityCoverage,
    PrecisionRecall,
    density_coverage,
    expected_coverage,
    precision_recall,
)
from danlu.math.metrics import (
    CalibrationBin,
    Report,
    Score,
    accuracy,
    calibration_bins,
    class_report,
    confusion_matrix,
    expected_calibration_error,
    f1_from_counts,
    report_from_counts,
    score_from_counts,
    span_confusion,
    span_counts,
    span_report,
    tag_accuracy,
)
from danlu.math.min_norm_point import min_norm_weights
from danlu.math.minimax import MinimaxFit, largest_error, least_squares_fit, minimax_fit
from danlu.math.mode_coverage import ModeCoverage, mode_coverage
from danlu.math.moments import Moments, all_reduce_moments, merge_moments, moments
from danlu.math.nonnegative_minimum import nonnegative_minimum
from danlu.math.ode_solve import solve_ode
from danlu.math.ode_steps import ODE_METHODS, ode_step
from danlu.math.pareto_k import pareto_k, pareto_k_limit
from danlu.math.psd_sqrt import psd_sqrt
from danlu.math.pseudo_inverse import PseudoInverse, iterative_pinv, pinv_residual, pinv_step_bound, pseudo_inverse
from danlu.math.ratio_calibration import RatioCalibration, ratio_calibration
from danlu.math.reduce import reduce_loss
from danlu.math.relaxation import (
    gumbel_max,
    gumbel_softmax,
    relaxed_bernoulli,
    straight_through_bernoulli,
    straight_through_onehot,
)
from danlu.math.repetition_metrics import longest_repeat, loop_counts, loop_period, rep_w, seq_rep_n
from danlu.math.semiring import (
    chain_backward,
    chain_entropy,
    chain_forward,
    chain_inputs,
    chain_marginals,
    logsumexp,
)
from danlu.math.singular import power_iteration, top_singular
from danlu.math.smooth import sharpness_at, smooth_argmax, smooth_max, smooth_min, smooth_onehot, smooth_rank
from danlu.math.smooth_bound import smooth_bound
from danlu.math.smooth_step import (
    hard_forward,
    smooth_abs,
    smooth_floor,
    smooth_relu,
    smooth_round,
    smooth_sign,
    smooth_step,
)
from danlu.math.smooth_topk import TOPK_METHODS, smooth_topk
from danlu.math.soft_confusion import soft_confusion
from danlu.math.sphere import angle_factor, retract, tangent
from danlu.math.spherical_kmeans import SphericalClusters, spherical_kmeans
from danlu.math.student_t import student_t_quantile
from danlu.math.tag_scheme import (
    SCHEMES,
    allowed_transitions,
    convert_tags,
    detect_scheme,
    illegal_steps,
    repair_tags,
    scheme_labels,
    spans,
    split_tag,
    tags_from_spans,
)
from danlu.math.task_direction import direction_weights
from danlu.math.tree_metrics import (
    AttachmentScores,
    attachment_counts,
    attachment_scores,
    bracket_f1,
    subtree_spans,
    tree_spans,
)
from danlu.math.triple_metrics import overlap_kinds, triple_breakdown, triple_counts, triple_report

__all__ = [
    "CHAINS",
    "F_DIVERGENCES",
    "GELU_ODD5",
    "ODE_METHODS",
    "SCHEMES",
    "TOPK_METHODS",
    "AttachmentScores",
    "BootstrapInterval",
    "CalibrationBin",
    "DensityCoverage",
    "FDivergence",
    "FrechetEstimate",
    "ImportanceEstimate",
    "KernelEstimate",
    "LeastSquares",
    "LogisticMixture",
    "MinimaxFit",
    "ModeCoverage",
    "Moments",
    "PrecisionRecall",
    "PseudoInverse",
    "RatioCalibration",
    "Report",
    "Score",
    "SphericalClusters",
    "accuracy",
    "activation",
    "activation_name",
    "adjusted_rand_index",
    "all_reduce_moments",
    "allowed_transitions",
    "alpha_divergence",
    "angle_factor",
    "answer_f1",
    "answer_match",
    "answer_scores",
    "answer_segments",
    "as_f_divergence",
    "attachment_counts",
    "attachment_scores",
    "attention_normalize",
    "bits_per_dim",
    "bleu",
    "bootstrap_interval",
    "bracket_f1",
    "calibration_bins",
    "chain_backward",
    "chain_entropy",
    "chain_forward",
    "chain_heads",
    "chain_inputs",
    "chain_marginals",
    "chain_tree",
    "chu_liu_edmonds",
    "cky",
    "class_report",
    "confusion_matrix",
    "conv_norm",
    "conv_norm_bound",
    "convert_tags",
    "density_coverage",
    "detect_scheme",
    "direction_weights",
    "discretized_logistic_log_prob",
    "discretized_logistic_sample",
    "distinct_n",
    "divergence_from_f",
    "dreg_hook",
    "dual_cone_weights",
    "effective_sample_size",
    "eisner",
    "evidence_features",
    "expected_calibration_error",
    "expected_coverage",
    "f1_from_counts",
    "f_activation",
    "f_bound",
    "f_conjugate",
    "f_divergence",
    "f_swap",
    "fisher_covariance",
    "frechet_distance",
    "frechet_estimate",
    "frechet_floor",
    "gaussian_bhattacharyya",
    "gaussian_bhattacharyya_diagonal",
    "gaussian_chernoff",
    "gaussian_hellinger",
    "gaussian_hellinger_diagonal",
    "gaussian_jeffreys",
    "gaussian_kl",
    "gaussian_kl_diagonal",
    "gaussian_transport",
    "gaussian_wasserstein",
    "gaussian_wasserstein_diagonal",
    "gelu",
    "gelu_fit",
    "gelu_odd",
    "gelu_odd_error",
    "gelu_series",
    "gelu_table",
    "gradient_cosines",
    "gram_matrix",
    "gumbel_max",
    "gumbel_softmax",
    "hard_forward",
    "illegal_steps",
    "importance_estimate",
    "is_projective",
    "is_tree",
    "iterative_pinv",
    "jackknife_bound",
    "kernel_distance",
    "kernel_estimate",
    "largest_error",
    "lcs_length",
    "least_squares_fit",
    "levenberg_marquardt",
    "log_mean_exp",
    "logistic_mixture_log_prob",
    "logistic_mixture_sample",
    "logsumexp",
    "longest_repeat",
    "loop_counts",
    "loop_period",
    "merge_moments",
    "min_norm_weights",
    "minimax_fit",
    "mode_coverage",
    "moments",
    "nonnegative_minimum",
    "normalized_mutual_information",
    "normalized_weights",
    "ode_step",
    "overlap_kinds",
    "pareto_k",
    "pareto_k_limit",
    "passage_overlap",
    "pcgrad_weights",
    "pearson",
    "pinv_residual",
    "pinv_step_bound",
    "position_accuracy",
    "power_iteration",
    "precision_recall",
    "primary_weights",
    "psd_sqrt",
    "pseudo_inverse",
    "purity",
    "question_overlap",
    "ratio_calibration",
    "reduce_loss",
    "relaxed_bernoulli",
    "rep_w",
    "repair_tags",
    "report_from_counts",
    "reshaped_norm",
    "retract",
    "rouge_l",
    "rouge_n",
    "rowwise_jacobian",
    "scheme_labels",
    "score_from_counts",
    "seq_rep_n",
    "sharpness_at",
    "smooth_abs",
    "smooth_argmax",
    "smooth_bound",
    "smooth_floor",
    "smooth_max",
    "smooth_min",
    "smooth_onehot",
    "smooth_rank",
    "smooth_relu",
    "smooth_round",
    "smooth_sign",
    "smooth_step",
    "smooth_topk",
    "soft_confusion",
    "softmax_plus_scale",
    "solve_ode",
    "span_confusion",
    "span_counts",
    "span_report",
    "span_values",
    "spans",
    "spans_tree",
    "spearman",
    "spearman_influence",
    "spherical_kmeans",
    "split_logistic_mixture",
    "split_tag",
    "straight_through_bernoulli",
    "straight_through_onehot",
    "student_t_quantile",
    "subtree_spans",
    "tag_accuracy",
    "tags_from_spans",
    "tangent",
    "top_down_tree",
    "top_singular",
    "tree_score",
    "tree_spans",
    "triple_breakdown",
    "triple_counts",
    "triple_report",
    "vote",
    "window_edit_similarity",
    "window_jaccard",
]
