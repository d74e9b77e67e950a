r"""A hierarchy of latents against one layer of them, at equal numbers of parameters.

Claim  arXiv:2007.03898: a deep hierarchical autoencoder has better likelihoods than earlier autoencoders; posteriors
       relative to the prior and spectral regularisation help it. kexue.fm/archives/7574: its samples are no longer
       blurred. Their figures are for models a hundred times this size, so none is compared; what is asked here is the
       sign.
Test   the small NVAE; one group of latents with the same cells, numbers of latents and of parameters; a convolutional
       autoencoder of as many parameters, with as many steps and with `longer` times as many (about the same time). The
       same data, batch and seeds. Log-likelihood of test images by importance sampling with M samples each, and paired
       gains with their standard errors over images. On the digits also NVAE with absolute posteriors and without
       the spectral term. What the groups carry, and what reconstructions lose when fine groups are forgotten.
Data   digits of scikit-learn; mnist (a folder of $DANLU_DATA/data) averaged over 2 x 2 pixels; binarised at random at
       every visit, the test images once with the same bits in every run
Run    danlu run nvae --scale smoke|full --seed 0 --set steps=400
"""

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from danlu.gallery.record import Result
from danlu.generative import VAE, VAEConfig, evaluation_mode, vae_log_prob
from danlu.generative.nvae import NVAE
from danlu.generative.nvae_bound import nvae_log_prob
from danlu.generative.nvae_config import NVAEConfig
from danlu.generative.nvae_objective import kl_warmup
from danlu.generative.nvae_penalty import SpectralSum, norm_gain_sum
from danlu.generative.sampling_statistics import sampling_statistics
from danlu.tasks.images import image_levels, load_images

__all__ = ["SCALES", "Config", "run", "train"]


@dataclass(frozen=True)
class Config:
    """Most of the time goes into NVAE on mnist."""

    data: str = "digits mnist"
    train_size: int = 20_000
    test_size: int = 200
    coarse: int = 2  # groups
    fine: int = 3
    channels: int = 12
    latent_channels: int = 8
    expansion: int = 2
    latent_dim: int = 32  # of the convolutional autoencoder
    steps: int = 1_000  # on digits
    mnist_steps: int = 600
    longer: int = 8
    batch_size: int = 32
    lr: float = 5e-3  # of Adamax, for NVAE
    vae_lr: float = 1e-3  # of Adam, for the convolutional one
    strength: float = 1e-2  # of the spectral term
    samples: int = 100  # M
    temperature: float = 0.7
    pictures: int = 10


SCALES = {
    "smoke": Config(
        data="digits", train_size=200, test_size=6, coarse=1, fine=1, channels=2, latent_channels=2, latent_dim=4,
        steps=4, longer=2, batch_size=16, samples=3, pictures=2,
    ),
    "full": Config(),
}  # fmt: skip


def shares(name: str, part: str, limit: int) -> Tensor:
    """Brightness of every pixel in [0, 1], (N, 1, H, W); sides above 8 halved."""
    x = load_images(name, part, limit)[0].float() / (image_levels(name) - 1)
    return x if x.shape[-1] <= 8 else F.avg_pool2d(x, 2)


def bits(x: Tensor, generator: torch.Generator) -> Tensor:
    """Pixels of 0 and 1 that are 1 as often as the image is bright."""
    return torch.bernoulli(x, generator=generator)


def parameters(model: nn.Module) -> int:
    """How many numbers a model trains."""
    return sum(p.numel() for p in model.parameters())


def nearest(build: Callable[[int], nn.Module], target: int) -> int:
    """The width with which a model comes closest to a number of parameters."""
    low, high = 2, 512
    with torch.device("meta"):
        while low < high:
            middle = (low + high) // 2
            low, high = (middle + 1, high) if parameters(build(middle)) < target else (low, middle)
        return min((max(2, low - 1), low), key=lambda width: abs(parameters(build(width)) - target))


def train(
    config: Config, seed: int, data: Tensor, steps: int, build: Callable[[], nn.Module], strength: float
) -> nn.Module:
    """An NVAE or a VAE after so many steps; the same bits in the same order for all."""
    torch.manual_seed(seed)
    model = build()
    of_data, of_latent = torch.Generator().manual_seed(seed), torch.Generator().manual_seed(seed + 10_000)
    deep = isinstance(model, NVAE)
    spectral = SpectralSum(model) if deep and strength else None
    optimizer: torch.optim.Optimizer
    if deep:
        optimizer = torch.optim.Adamax(model.parameters(), lr=config.lr, eps=1e-3)
    else:
        optimizer = torch.optim.Adam(model.parameters(), lr=config.vae_lr)
    falling = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for step in range(steps):
        x = bits(data[torch.randint(len(data), (config.batch_size,), generator=of_data)], of_data)
        beta = kl_warmup(step, steps)
        optimizer.zero_grad()
        extra = {"balance": True} if deep else {}
        loss = model.loss(x, generator=of_latent, beta=beta, **extra)  # type: ignore[operator]
        if spectral is not None:
            loss = loss + strength * (spectral() + norm_gain_sum(model))
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 200.0)
        optimizer.step()
        falling.step()
    return model.eval()


def arms(config: Config, shape: tuple[int, ...]) -> dict[str, Callable[[], nn.Module]]:
    """How the models of one set are built."""
    whole = NVAEConfig(
        shape, (config.coarse, config.fine), config.channels, config.latent_channels, expansion=config.expansion,
        post_expansion=config.expansion,
    )  # fmt: skip
    count = parameters(NVAE(whole))
    one = replace(whole, groups=(1,))
    one = replace(one, latent_channels=max(1, round(whole.latent_size / math.prod(one.sides(0)))))
    one = replace(one, channels=nearest(lambda width: NVAE(replace(one, channels=width)), count))

    def flat(width: int) -> VAE:
        return VAE(VAEConfig(shape, config.latent_dim, network="conv", hidden=(width, 2 * width)))

    width = nearest(flat, count)
    return {
        "nvae": lambda: NVAE(whole),
        "one group": lambda: NVAE(one),
        "vae": lambda: flat(width),
        "vae, longer": lambda: flat(width),
        "absolute posteriors": lambda: NVAE(replace(whole, residual=False)),
        "no spectral term": lambda: NVAE(whole),
    }


def run(config: Config, seed: int) -> Result:
    """All sets and arms with one seed."""
    measured: dict[str, float] = {}
    figures: dict[str, object] = {"config": asdict(config)}
    for name in config.data.split():
        data = shares(name, "train", config.train_size)
        test = bits(shares(name, "test", config.test_size), torch.Generator().manual_seed(0))
        steps = config.steps if name == "digits" else config.mnist_steps
        values: dict[str, Tensor] = {}
        pictures = {"data": grey(test[: config.pictures])}
        for arm, build in arms(config, tuple(data.shape[1:])).items():
            if arm not in ("nvae", "one group", "vae", "vae, longer") and name != "digits":
                continue
            many = steps * (config.longer if arm == "vae, longer" else 1)
            strength = 0.0 if arm == "no spectral term" else config.strength
            model = train(config, seed, data, many, build, strength)
            drawn = torch.Generator().manual_seed(seed)
            if isinstance(model, NVAE):
                estimate = nvae_log_prob(model, test, config.samples, generator=drawn)
            else:
                assert isinstance(model, VAE)
                estimate = vae_log_prob(model, test, config.samples, generator=drawn)
            values[arm] = estimate.value
            measured[f"{name}, {arm}: nats"] = -estimate.value.mean().item()
            measured[f"{name}, {arm}: parameters"] = parameters(model)
            measured[f"{name}, {arm}: median effective sample size"] = estimate.ess.median().item()
            pictures[arm] = grey(shown(model, config, seed))
            if arm == "nvae" and isinstance(model, NVAE):
                rows, kept = groups(model, test, config)
                measured |= {f"{name}, {key}": value for key, value in rows.items()}
                figures[f"{name}: error over groups kept"] = kept
                pictures["nvae, reconstruction"] = grey(model.reconstruct(test[: config.pictures]))
                path = model.interpolate(test[:2], test[2:4], 8)  # (8, 2, 1, H, W)
                pictures["nvae, interpolation"] = grey(path.transpose(0, 1).flatten(0, 1))
        for arm in list(values)[1:]:
            measured |= gain(f"{name}, nvae over {arm}", values["nvae"] - values[arm])
        figures[f"{name}: pictures"] = pictures
    return Result(measured=measured, figures=figures)


def shown(model: nn.Module, config: Config, seed: int) -> Tensor:
    """Expected images for draws of the prior, below temperature 1 for hierarchies."""
    generator = torch.Generator().manual_seed(seed)
    if isinstance(model, NVAE):
        with sampling_statistics(model, lambda: model.prior_params(64, generator, config.temperature), steps=10):
            return model.sample(config.pictures, generator, config.temperature, mean=True)
    assert isinstance(model, VAE)
    return model.sample(config.pictures, generator, mean=True)


def groups(model: NVAE, test: Tensor, config: Config) -> tuple[dict[str, float], list[list[float]]]:
    """What every group carries, and the error of reconstructions that know the first k groups alone."""
    with evaluation_mode(model):
        out = model(test, generator=torch.Generator().manual_seed(0))
    rows = {f"KL of group {i}": value for i, value in enumerate(out.group_kl.mean(1).tolist())}
    rows["active channels"] = int((out.channel_kl.mean(1) > 0.1).sum())
    kept = range(len(out.group_kl) + 1)
    return rows, [[k, (model.reconstruct(test, k) - test).square().mean().item()] for k in kept]


def grey(x: Tensor) -> list[list[list[int]]]:
    """Images of one channel in [0, 1] as whole numbers."""
    return (x[:, 0] * 255).round().int().tolist()


def gain(name: str, difference: Tensor) -> dict[str, float]:
    """A mean difference over images in nats, and how many of its standard errors it is."""
    mean = difference.mean().item()
    error = difference.std().item() / math.sqrt(len(difference))
    return {name: mean, f"{name}, in standard errors": mean / error if error else 0.0}
