r"""Density models of images as one thing: built from a word, trained by a sum, stored in a folder, used by a coder.

    vae        latents and convolutions (on small images, full layers); Bernoulli for 2 levels, a mixture of
               discretised logistics for grey and colour                                                      (1)
    nice, realnvp, glow   flows over levels with uniform noise                                                (2)

Source: `danlu.generative.vae`, `danlu.generative.flow`, `danlu.generative.bits_back`.
Shapes: N images (N, C, H, W) uint8 of L levels.
"""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from danlu import __version__
from danlu.data.errors import InputError
from danlu.generative.bits_back import Coder, FlowCoder, LatentCoder
from danlu.generative.flow import Flow
from danlu.generative.flow_config import FlowConfig
from danlu.generative.vae import VAE
from danlu.generative.vae_bound import vae_log_prob
from danlu.generative.vae_config import VAEConfig
from danlu.tasks.folder import FORMAT_VERSION, digest, read_task, read_tensors, write_json, write_tensors
from danlu.tasks.settings import LoopSettings

__all__ = ["KINDS", "DensityModel", "DensitySettings", "build_density", "open_density", "write_density"]
KINDS = ("vae", "nice", "realnvp", "glow")
CODED = 256  # dimensions up to which a flow can code: each image needs its Jacobian


@dataclass(frozen=True)
class DensitySettings(LoopSettings):
    """Numbers of a density model and its training."""

    epochs: float = 20.0
    batch_size: int = 128
    lr: float = 1e-3
    weight_decay: float = 0.0
    clip: float = 500.0  # losses are sums over pixels
    latent_dim: int = 32  # vae
    width: int = 64  # channels or units: flows; vae: of the first stage, the second has twice as many
    steps: int = 4  # flows: couplings of a level
    levels: int = 2  # flows of images: how often the sides are halved
    components: int = 5  # vae: logistics in a mixture
    ema: float = 0.0  # decay of averaged weights that are evaluated and kept; 0: none

    choices: ClassVar[dict[str, tuple[str, ...]]] = {}


class DensityModel(nn.Module):
    """A density model and how many levels its images have; what the training loop sees."""

    def __init__(self, model: VAE | Flow, levels: int) -> None:
        super().__init__()
        self.model, self.levels = model, levels

    @property
    def shape(self) -> tuple[int, ...]:
        """Of one image."""
        return self.model.config.shape

    def forward(self, batch: dict[str, Tensor], objective: Any = None) -> Tensor:
        """Sum of the losses of the images, nats."""
        x = batch["x"]
        return self.model.loss(self._stored(x)) * len(x)

    @torch.no_grad()
    def bound(self, x: Tensor, draws: int = 1, generator: torch.Generator | None = None) -> Tensor:
        """Lower bound of the log-likelihood of each image, a mean over draws of latents or noise.

        Args:
            x: (N, C, H, W) uint8.
            draws: how many.
            generator: of them.

        Returns:
            (N,) nats.
        """
        x = self._stored(x)
        if isinstance(self.model, VAE):
            out = self.model(x, draws, generator=generator)
            return -(out.reconstruction + out.kl)
        return self.model.log_prob(x, generator, draws)

    @torch.no_grad()
    def log_prob(self, x: Tensor, draws: int, generator: torch.Generator | None = None) -> Tensor:
        """Importance-weighted bound of each image; tighter than `bound` with as many draws.

        Args:
            x: (N, C, H, W) uint8.
            draws: of latents or noise.
            generator: of them.

        Returns:
            (N,) nats.
        """
        x = self._stored(x)
        if isinstance(self.model, VAE):
            return vae_log_prob(self.model, x, draws, generator=generator).value
        return self.model.log_prob(x, generator, draws, importance=True)

    def bits(self, nats: Tensor) -> float:
        """Mean bits per dimension of log-likelihoods."""
        return -float(nats.double().mean()) / (math.log(2) * math.prod(self.shape))

    def coder(self) -> Coder:
        """What codes images at the length of `bound`; on the CPU, in float64.

        Raises:
            InputError: a flow over too many dimensions.
        """
        model = self.model
        if isinstance(model, VAE):
            likelihood = model.likelihood

            def encode(x: Tensor) -> tuple[Tensor, Tensor]:
                mean, sd = model.encode(self._stored(x))
                return mean, 2 * sd.log()

            colours = self.shape[0] > 1 and model.config.likelihood == "logistic_mixture"
            return LatentCoder(encode, model.decode, likelihood.log_pmf, self.shape, channelwise=colours)
        if math.prod(self.shape) > CODED:
            raise InputError(
                f"a flow codes images of up to {CODED} numbers, these have {math.prod(self.shape)}; train a vae to "
                "compress them"
            )
        size = self.levels
        return FlowCoder(
            lambda x: model.encode(x / size - 0.5),
            lambda z: (model.decode(z) + 0.5) * size,
            self.shape,
            size,
        )

    def _stored(self, x: Tensor) -> Tensor:
        """Images as the likelihood wants them."""
        return x.view(len(x), *self.shape)


def build_density(kind: str, shape: Sequence[int], levels: int, settings: DensitySettings) -> DensityModel:
    """A fresh model, (1) or (2).

    Args:
        kind: one of KINDS.
        shape: (C, H, W).
        levels: L, 2 to 256.
        settings: its sizes.

    Returns:
        The model, weights drawn from torch's global stream.

    Raises:
        InputError: no such kind, or sizes that do not fit the images.
    """
    if kind not in KINDS:
        raise InputError(f"no density model {kind!r}; there are {', '.join(KINDS)}")
    try:
        model: VAE | Flow
        if kind == "vae":
            small = min(shape[1:]) < 8
            model = VAE(
                VAEConfig(
                    tuple(shape), settings.latent_dim, "bernoulli" if levels == 2 else "logistic_mixture",
                    max(1, (levels - 1).bit_length()), settings.components, "mlp" if small else "conv",
                    (8 * settings.width, 4 * settings.width) if small else (settings.width, 2 * settings.width),
                )
            )  # fmt: skip
        else:
            halved = 1 if kind == "nice" else settings.levels
            config = FlowConfig(tuple(shape), kind, halved, settings.steps, settings.width, num_bins=levels)
            model = Flow(replace(config, width=8 * settings.width) if kind == "nice" else config)
    except ValueError as error:
        raise InputError(f"{kind} for images {tuple(shape)}: {error}") from None
    return DensityModel(model, levels)


def write_density(model: DensityModel, folder: Path, about: dict[str, Any]) -> None:
    """Weights and task.json, which makes the folder one."""
    write_tensors(folder / "model.safetensors", model.model.state_dict())
    kind = "vae" if isinstance(model.model, VAE) else "flow"
    head = {"format_version": FORMAT_VERSION, "danlu_version": __version__, "task": "density", "model": kind}
    write_json(folder / "task.json", head | {"levels": model.levels, "config": asdict(model.model.config)} | about)


def open_density(folder: Path) -> tuple[DensityModel, bytes]:
    """The model of a folder, in evaluation mode and float64 on the CPU, and the digest of its weights.

    Args:
        folder: what `danlu density` wrote.

    Returns:
        The model and 32 bytes.

    Raises:
        InputError: no such folder, one of another task, or a damaged one.
    """
    about = read_task(folder)
    if about.get("task") != "density":
        raise InputError(f"{folder} holds a model of task {about.get('task')}, not a density of images")
    weights = folder / "model.safetensors"
    try:
        config = dict(about["config"])
        model: VAE | Flow = VAE(VAEConfig(**config)) if about["model"] == "vae" else Flow(FlowConfig(**config))
        model.load_state_dict(read_tensors(weights))
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        reason = " ".join(str(error).split())
        raise InputError(f"{folder} does not hold together ({reason}); restore it or train again") from None
    return DensityModel(model, int(about["levels"])).double().eval(), bytes.fromhex(digest(weights) or "")
