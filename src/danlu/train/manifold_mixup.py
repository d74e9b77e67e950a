r"""Manifold mixup: mix what a layer gives, of a model that knows nothing of it.

    h~_k = lam h_k + (1 - lam) h_k[p],   k uniform over a set of layers, anew for each batch                  (1)
    L = lam l(f, y) + (1 - lam) l(f, y[p])                                                                (2)

A hook on the layer does it and is gone when the block ends, however it ends. With the embedding as the only layer it is
embedding mixup (wordMixup), with the pooled vector of a text sentence mixup; an nn.Identity in front of the model makes
the input itself a layer. A model that calls the layer twice (two texts of a pair) has both calls mixed alike.

    with ManifoldMixup([model.embed, model.block]).mixing(y) as mix:
        logits = model(x)
    loss = mixup_loss(logits, mix_targets(y, mix))

Of a transformer give the whole embedding block where it is a module of its own (positions and norm are then mixed as
well), the table of tokens where it is not.

Padding: give the block the mask of the rows and the model `mix_masks(mask, mix)`. That is exact for the layer in which
tokens first become vectors. At a higher layer those below it read the padding of the shorter row as tokens (or, given
the plain mask, those above do not see what only the partner has); batches of like length make it small. Vectors of
whole texts, (B, D), need the plain mask and no other.

With activation checkpointing run backward inside the block as well. Under torch.compile the hook runs outside the
graph; a model that was compiled before the block does not see it: compile the parts after the layer.

Several processes want different pairs and the same layer: `generator` is theirs, `layer_seed` common.

Source: Verma et al., 2018, arXiv:1806.05236; text: Guo et al., 2019, arXiv:1905.08941.
Shapes: B examples, T tokens, D features.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from danlu.train.adversarial_output import outputs_through
from danlu.train.pairing import Mix, draw_mix, mix_inputs

__all__ = ["ManifoldMixup", "output_mixed"]


@contextmanager
def output_mixed(module: nn.Module, mix: Mix, mask: Tensor | None = None) -> Iterator[None]:
    """Inside the block what the module returns is mixed with its partner's, eq. (1); afterwards no trace is left.

    Args:
        module: a module that returns one float tensor, (B, ...).
        mix: of `draw_mix`.
        mask: (B, T) bool, True = keep, of rows before mixing; used where the output has token vectors, (B, T, D).

    Raises:
        ValueError: the module was not called inside the block, or gives another number of examples.
        TypeError: the module returns something else than one tensor.

    >>> layer, mix = nn.Identity(), Mix(torch.tensor([0.75]), torch.tensor([1, 0]))
    >>> with output_mixed(layer, mix):
    ...     print(layer(torch.tensor([[0.0], [4.0]])))
    tensor([[1.],
            [3.]])
    """

    def mixed(_: int, x: Tensor) -> Tensor:
        return mix_inputs(x, mix, mask if mask is not None and x.ndim > mask.ndim else None)  # eq. (1)

    with outputs_through(module, mixed):
        yield


class ManifoldMixup:
    """`output_mixed` at a layer drawn for each batch, with its settings: `with manifold.mixing(y) as mix: ...`.

    modules: one layer or several; the other settings are those of `draw_mix`. `module` is the layer of the last batch.
    """

    def __init__(
        self,
        modules: nn.Module | Sequence[nn.Module],
        alpha: float = 0.2,
        per_sample: bool = True,
        pair: str = "random",
        generator: torch.Generator | None = None,
        layer_seed: int = 0,
    ) -> None:
        self.modules = [modules] if isinstance(modules, nn.Module) else list(modules)
        if not self.modules:
            raise ValueError("ManifoldMixup needs a layer to mix at, such as model.get_input_embeddings()")
        draw_mix(0, alpha, per_sample, pair, torch.zeros(0, dtype=torch.long), torch.Generator())  # refuses now
        self.alpha, self.per_sample, self.pair, self.generator = alpha, per_sample, pair, generator
        self.layers = torch.Generator().manual_seed(layer_seed)
        self.module = self.modules[0]

    @contextmanager
    def mixing(self, y: Tensor, mask: Tensor | None = None) -> Iterator[Mix]:
        """Inside the block the model's chosen layer is mixed; the targets are `mix_targets(y, mix)`."""
        self.module = self.modules[int(torch.randint(len(self.modules), (), generator=self.layers))]
        labels = y if self.pair.endswith("class") else None
        mix = draw_mix(len(y), self.alpha, self.per_sample, self.pair, labels, self.generator, y.device)
        with output_mixed(self.module, mix, mask):
            yield mix
