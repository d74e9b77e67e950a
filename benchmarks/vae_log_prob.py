"""log p(x) of images under one autoencoder by importance sampling: ours in blocks, pythae's get_nll, a loop per image.

All three have the same weights, the same number of samples and the same number of latents decoded at a time. pythae
(pip install --no-deps pythae) is left out where it is missing; the loop is the same estimator as its get_nll, without
its running the encoder for every sample.

Run: python benchmarks/vae_log_prob.py [--images 100] [--samples 1000] [--threads 1] [--json FILE]
"""

import argparse
import json
import math
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from _machine import milliseconds, record, write
from danlu.generative import VAE, VAEConfig, vae_log_prob

SHAPE = (1, 28, 28)


@torch.no_grad()
def loop(model: VAE, x: Tensor, samples: int, chunk: int) -> Tensor:
    """One image after the other, its samples in chunks."""
    values = []
    for image in x:
        mean, std = model.encode(image[None])
        parts = []
        for _ in range(samples // chunk):
            z = mean + std * torch.randn(chunk, mean.shape[1])
            logits = model.decoder(z).flatten(1)
            log_p = -F.binary_cross_entropy_with_logits(
                logits, image.flatten().expand(chunk, -1), reduction="none"
            ).sum(1)
            log_q = (-0.5 * ((z - mean) / std) ** 2 - std.log()).sum(1)
            parts.append(log_p - 0.5 * (z**2).sum(1) - log_q)
        values.append(torch.cat(parts).logsumexp(0) - math.log(samples))
    return torch.stack(values)


def pythae_model(model: VAE) -> nn.Module | None:
    """pythae's VAE with the weights of ours; None where it is not installed."""
    try:
        from pythae.models import VAE as Peer
        from pythae.models import VAEConfig as PeerConfig
        from pythae.models.base.base_utils import ModelOutput
        from pythae.models.nn import BaseDecoder, BaseEncoder
    except ImportError:
        return None

    class Encoder(BaseEncoder):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.inner = model.encoder

        def forward(self, x: Tensor) -> ModelOutput:
            mean, log_var = self.inner(x).chunk(2, -1)
            return ModelOutput(embedding=mean, log_covariance=log_var)

    class Decoder(BaseDecoder):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.inner = model.decoder

        def forward(self, z: Tensor) -> ModelOutput:
            return ModelOutput(reconstruction=self.inner(z).sigmoid())

    config = PeerConfig(input_dim=SHAPE, latent_dim=model.config.latent_dim, reconstruction_loss="bce")
    return Peer(config, Encoder(), Decoder()).eval()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=100)
    parser.add_argument("--samples", type=int, default=1000)
    parser.add_argument("--chunk", type=int, default=100, help="latents that the peers decode at a time")
    parser.add_argument("--hidden", type=int, default=256)
    parser.add_argument("--latent-dim", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path, help="write the result here")
    options = parser.parse_args()
    if options.samples % options.chunk:
        parser.error("--samples must be a multiple of --chunk, as pythae takes no others")
    torch.manual_seed(0)
    torch.set_num_threads(options.threads)
    head = record(("danlu", "torch"), options.threads)
    config = VAEConfig(SHAPE, options.latent_dim, hidden=(options.hidden,), log_var_limit=None)
    model = VAE(config).eval()
    x = torch.bernoulli(torch.full((options.images, *SHAPE), 0.2))
    samples, chunk = options.samples, options.chunk

    def ours() -> Tensor:
        return vae_log_prob(model, x, samples).value

    def ours_bfloat16() -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return vae_log_prob(model, x, samples).value

    peer = pythae_model(model)

    def pythae_bfloat16() -> object:
        with torch.autocast("cpu", torch.bfloat16):
            return peer.get_nll(x, samples, chunk)

    functions: dict[str, Callable[[], object]] = {
        "ours": ours,
        "ours_bfloat16": ours_bfloat16,
        "loop": lambda: loop(model, x, samples, chunk),
        "loop_whole": lambda: loop(model, x, samples, samples),
    }
    if peer is not None:
        functions["pythae"] = lambda: peer.get_nll(x, samples, chunk)
        functions["pythae_whole"] = lambda: peer.get_nll(x, samples, samples)
        functions["pythae_bfloat16"] = pythae_bfloat16
    row: dict[str, object] = {"images": options.images, "samples": samples, "chunk": chunk, "hidden": options.hidden}
    with torch.no_grad():
        values = {name: function() for name, function in functions.items()}
    for name, value in values.items():  # all estimate one number
        row[f"{name}_mean"] = value.mean().item() if isinstance(value, Tensor) else -float(value)  # type: ignore[arg-type]
    with torch.no_grad():
        times = dict(zip(functions, milliseconds(*functions.values(), rounds=options.rounds), strict=True))
    row |= {f"{name}_ms": time for name, time in times.items()}
    row |= {f"{name}_ratio": time / times["ours"] for name, time in times.items() if name != "ours"}
    if peer is not None:
        try:
            row["pythae_version"] = version("pythae")
        except PackageNotFoundError:
            row["pythae_version"] = "from a folder"
    print(json.dumps(row))
    write(options.json, head | row)


if __name__ == "__main__":
    main()
