"""Contract rows of danlu.losses: one a public callable."""

from functools import partial

import torch
from contract import Row

from danlu import losses
from danlu.losses import (
    multilabel_cross_entropy,
    power_binary_cross_entropy,
    power_sigmoid,
    soft_accuracy_loss,
    soft_f1_loss,
    sparse_multilabel_cross_entropy,
)


def seeded(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0)).to(dtype)


CLASSES = torch.tensor([[0, 2, 1], [1, -100, 2]])

ROWS: list[Row] = [
    Row("soft_accuracy_loss", lambda: soft_accuracy_loss, lambda dtype: (seeded(2, 3, 3, dtype=dtype), CLASSES), ()),
    Row("soft_f1_loss", lambda: soft_f1_loss, lambda dtype: (seeded(2, 3, 3, dtype=dtype), CLASSES), ()),
    Row(
        "soft_f1_loss[labels]",
        lambda: partial(soft_f1_loss, average="micro", beta=2.0),
        lambda dtype: (seeded(4, 3, dtype=dtype), torch.tensor([[0, 1, 1], [1, 0, 0], [0, 0, 0], [1, 1, 0]])),
        (),
    ),
]

# multilabel


def _multilabel(dtype: torch.dtype) -> tuple[torch.Tensor, ...]:
    logits = seeded(2, 3, 5, dtype=dtype)
    logits[0, 1, 2] = -torch.inf
    return logits, torch.tensor([[[1, 0, 0, 1, 0], [0, 1, 1, 0, 0], [0] * 5], [[1] * 5, [0] * 5, [0, 0, 0, 0, 1]]])


def _multilabel_ids(dtype: torch.dtype) -> tuple[torch.Tensor, ...]:
    return _multilabel(dtype)[0], torch.tensor([[[0, 3], [1, -1], [-1, -1]], [[4, 4], [2, 0], [-1, -1]]])


ROWS += [
    Row("multilabel_cross_entropy", lambda: multilabel_cross_entropy, _multilabel, ()),
    Row("sparse_multilabel_cross_entropy", lambda: sparse_multilabel_cross_entropy, _multilabel_ids, ()),
    Row(
        "sparse_multilabel_cross_entropy[mask_zero]",
        lambda: partial(sparse_multilabel_cross_entropy, mask_zero=True, reduction="none"),
        _multilabel_ids,
        (2, 3),
    ),
]

# power_activation


def _rare(dtype: torch.dtype) -> tuple[torch.Tensor, ...]:
    return seeded(2, 5, 3, dtype=dtype), torch.tensor([[[0, 1, 0]] * 5, [[1, 0, 0]] * 5])


ROWS += [
    Row("power_sigmoid", lambda: partial(power_sigmoid, power=4.0), lambda dtype: _rare(dtype)[:1], (2, 5, 3)),
    Row("power_binary_cross_entropy", lambda: partial(power_binary_cross_entropy, power=4.0), _rare, ()),
]

# focal


def _yes_or_no(dtype: torch.dtype) -> tuple[torch.Tensor, ...]:
    z = seeded(2, 3, dtype=dtype)
    keep = torch.tensor([[True, True, False], [True, False, True]])
    logs = torch.nn.functional.logsigmoid(z), torch.nn.functional.logsigmoid(-z)
    return *logs, torch.tensor([[1, 0, 0], [0, 1, 1]]), keep


ROWS += [
    Row("focal_loss", lambda: losses.focal_loss, _yes_or_no, ()),
    Row("focal_loss[none]", lambda: partial(losses.focal_loss, reduction="none"), _yes_or_no, (2, 3)),
]

# contrastive


def _anchors(dtype: torch.dtype) -> tuple[torch.Tensor, ...]:
    return (
        seeded(3, 4, dtype=dtype),
        torch.tensor([0, 3, 1]),
        torch.tensor([[True] * 4, [True] * 4, [True] * 3 + [False]]),
    )


def _several_positives(dtype: torch.dtype) -> tuple[torch.Tensor, ...]:
    scores, target, mask = _anchors(dtype)
    return scores, torch.nn.functional.one_hot(target, 4).bool(), mask


def _views(dtype: torch.dtype) -> tuple[torch.Tensor, ...]:
    return seeded(4, 3, dtype=dtype), seeded(8, 3, dtype=dtype)[4:]


ROWS += [
    Row("flat_nce", lambda: losses.flat_nce, _anchors, ()),
    Row("flat_nce[several]", lambda: partial(losses.flat_nce, reduction="none"), _several_positives, (3,)),
    Row("info_nce", lambda: losses.info_nce, _anchors, ()),
    Row("info_nce[several]", lambda: partial(losses.info_nce, reduction="none"), _several_positives, (3,)),
    Row(
        "contrastive_scores", lambda: partial(losses.contrastive_scores, temperature=0.5, layout="all"), _views, (8, 8)
    ),
    Row(
        "contrastive_stats",
        lambda: losses.contrastive_stats,
        _anchors,
        (),
        no_compile="the anchors are selected by data",
    ),
    Row("ContrastiveLoss", lambda: losses.ContrastiveLoss("flat", 0.5), _views, ()),
    Row("ContrastiveLoss[infonce]", lambda: losses.ContrastiveLoss("infonce", 0.5, "all"), _views, ()),
]

# cosent


def _alike(dtype: torch.dtype) -> tuple[torch.Tensor, ...]:
    return seeded(6, dtype=dtype).tanh(), torch.tensor([3.0, 0.5, 3.0, 5.0, 1.0, 2.0])


def _pairs_of_vectors(dtype: torch.dtype) -> tuple[torch.Tensor, ...]:
    return *_views(dtype), torch.tensor([1, 0, 1, 0])


ROWS += [
    Row("cosent_loss", lambda: partial(losses.cosent_loss, scale=2.0), _alike, ()),
    Row("CoSENTLoss", lambda: losses.CoSENTLoss(2.0), _pairs_of_vectors, ()),
]

# task_weights, uncertainty, prior_loss


def _task_losses(dtype: torch.dtype) -> tuple[torch.Tensor, ...]:
    return (torch.tensor([0.25, 3.0, 40.0], dtype=dtype),)


def _class_labels(dtype: torch.dtype) -> tuple[torch.Tensor, ...]:
    return torch.tensor([0, 2, 1, 1, -100]), torch.tensor([True, True, True, True, False])


ROWS += [
    Row("loss_ratio", lambda: partial(losses.loss_ratio, reference=[1.0, 2.0, 30.0]), _task_losses, ()),
    Row("loss_ratio[real time]", lambda: losses.loss_ratio, _task_losses, ()),
    Row("geometric_mean_loss", lambda: losses.geometric_mean_loss, _task_losses, ()),
    Row("power_mean_loss", lambda: partial(losses.power_mean_loss, gamma=0.5), _task_losses, ()),
    Row("power_mean_loss[max]", lambda: partial(losses.power_mean_loss, gamma=float("inf")), _task_losses, ()),
    Row("LossRatio", lambda: losses.LossRatio(3), _task_losses, ()),
    Row("LossRatio[running]", lambda: losses.LossRatio(3, momentum=0.5), _task_losses, ()),
    Row(
        "uncertainty_loss",
        lambda: partial(losses.uncertainty_loss, factor=[1.0, 0.5, 0.5]),
        lambda dtype: (*_task_losses(dtype), torch.tensor([0.0, 1.0, -0.5], dtype=dtype)),
        (),
    ),
    Row("UncertaintyLoss", lambda: losses.UncertaintyLoss(3), _task_losses, ()),
    Row("class_prior_loss", lambda: losses.class_prior_loss, _class_labels, ()),
    Row("regression_prior_loss", lambda: losses.regression_prior_loss, lambda dtype: (seeded(4, 3, dtype=dtype),), ()),
]

# spectral_penalty


def _penalised() -> torch.nn.Module:
    model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Linear(4, 2))
    for layer in model:
        layer.weight.data = seeded(*layer.weight.shape)
    return losses.SpectralPenalty(model, 0.1)


ROWS += [
    Row("spectral_penalty", lambda: losses.spectral_penalty, lambda dtype: (seeded(3, 4, dtype=dtype),), ()),
    Row(
        "spectral_penalty[author]",
        lambda: partial(losses.spectral_penalty, steps=5, mode="author"),
        lambda dtype: (seeded(3, 4, dtype=dtype),),
        (),
    ),
    Row("SpectralPenalty", _penalised, lambda dtype: (), ()),
]

# gan, gan_check, likelihood_ratio


def _score_batches(dtype: torch.dtype) -> tuple[torch.Tensor, ...]:
    return seeded(5, dtype=dtype), seeded(4, 2, dtype=dtype)


def _scores(dtype: torch.dtype) -> tuple[torch.Tensor, ...]:
    return _score_batches(dtype)[1:]


def _reported(game: str) -> torch.Tensor:
    return torch.tensor(losses.game_report(game).ratio_range)


BY_AUTOGRAD = "differentiates the game's functions on a grid"

ROWS += [
    Row("gan_critic_loss", lambda: losses.gan_critic_loss, _score_batches, ()),
    Row("gan_critic_loss[squares]", lambda: partial(losses.gan_critic_loss, game="least_squares"), _score_batches, ()),
    Row("gan_generator_loss", lambda: losses.gan_generator_loss, _scores, ()),
    Row(
        "gan_generator_loss[hinge]",
        lambda: partial(losses.gan_generator_loss, game="hinge", reduction="none"),
        _scores,
        (4, 2),
    ),
    Row("gan_game", lambda: losses.gan_game("gan").generator, _scores, (4, 2)),
    Row("least_squares_game", lambda: losses.least_squares_game(1.0, 0.0).fake, _scores, (4, 2)),
    Row("power_game", lambda: losses.power_game(0.5).real, _scores, (4, 2), bfloat16_tolerance=0.1),
    Row(
        "ratio_game",
        lambda: losses.ratio_game(lambda t: t, lambda t: torch.sigmoid(-t), "real").real,
        _scores,
        (4, 2),
    ),
    Row("game_log_ratio", lambda: losses.game_log_ratio, lambda dtype: (*_scores(dtype), "hellinger"), (4, 2)),
    Row(
        "ratio_balance",
        lambda: lambda real, fake: losses.ratio_balance(real, fake, "gan").spread,
        _score_batches,
        (),
    ),
    Row("game_report", lambda: _reported, lambda dtype: ("gan",), (2,), no_compile=BY_AUTOGRAD),
    Row(
        "check_game",
        lambda: lambda game: torch.tensor(losses.check_game(game).ratio_range),
        lambda dtype: ("least_squares",),
        (2,),
        no_compile=BY_AUTOGRAD,
    ),
]

# f_gan


def _critic_outputs_f(dtype: torch.dtype) -> tuple[torch.Tensor, ...]:
    return seeded(5, 1, dtype=dtype), seeded(4, 1, dtype=dtype) - 0.5


ROWS += [
    Row("f_gan_critic_loss", lambda: partial(losses.f_gan_critic_loss, divergence="kl"), _critic_outputs_f, ()),
    Row(
        "f_gan_generator_loss",
        lambda: partial(losses.f_gan_generator_loss, mode="saturating"),
        lambda dtype: _critic_outputs_f(dtype)[1:],
        (),
    ),
    Row("FGANLoss", lambda: losses.FGANLoss("squared_hellinger"), _critic_outputs_f, ()),
    Row("FGANLoss[any f]", lambda: losses.FGANLoss(lambda u: u * u.log()), _critic_outputs_f, ()),
]
