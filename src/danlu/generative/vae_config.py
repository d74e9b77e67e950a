"""What a variational autoencoder is built from, as a file of settings holds it.

Source: own definition.
Shapes: none.
"""

from dataclasses import dataclass

__all__ = ["VAEConfig"]


@dataclass(frozen=True)
class VAEConfig:
    """What rebuilds a VAE; plain numbers and words, as JSON holds them.

    shape: of one item, (D,) or (C, H, W). likelihood, bits, components: of `make_likelihood`. network: "mlp" or "conv".
    hidden: widths of the layers or channels of the stages, from the data inwards; None for (512, 256) or (32, 64).
    log_var_limit: of the soft clamp in std = exp(clamp(v) / 2); None for none.
    """

    shape: tuple[int, ...]
    latent_dim: int = 20
    likelihood: str = "bernoulli"
    bits: int = 8
    components: int = 5
    network: str = "mlp"
    hidden: tuple[int, ...] | None = None
    log_var_limit: float | None = 10.0

    def __post_init__(self) -> None:
        """Lists of a JSON file become tuples; what cannot be built raises."""
        object.__setattr__(self, "shape", tuple(self.shape))
        if self.hidden is not None:
            object.__setattr__(self, "hidden", tuple(self.hidden))
        if not self.shape or min(self.shape) < 1 or self.latent_dim < 1:
            raise ValueError(
                f"a VAE needs the shape of one item and latent_dim >= 1, got {self.shape} and {self.latent_dim}"
            )
        if self.network not in ("mlp", "conv"):
            raise ValueError(
                f"network must be 'mlp' or 'conv', got {self.network!r}; modules of your own go in as VAE(config, "
                "encoder, decoder)"
            )
