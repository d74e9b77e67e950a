r"""Whitening as an object: fits, streams, merges, transforms, inverts, saves; a transformer of scikit-learn.

    y = (x - beta mu) K,   x = y K^+ + beta mu                                                                (1)

What is kept are the statistics of `danlu.math.moments`, not the map: `partial_fit` and `merge` go on from any point,
also after `save` and `load`, and `set_params(dim=..., beta=..., gamma=...)` changes the map without another look at
the vectors.

Source: see `danlu.text.whitening`; the interface is that of scikit-learn's transformers.
Shapes: N vectors, D features, k kept dimensions.
"""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from danlu.data.errors import InputError
from danlu.math.moments import Moments
from danlu.text._whitening_fit import ROWS, WhiteningFit, float_kind, tensors_of, two_axes
from danlu.text.whitening import participation_ratio, whiten
from danlu.text.whitening_module import WhiteningModule

if TYPE_CHECKING:
    from sentence_transformers.sentence_transformer.modules import Dense

__all__ = ["Whitening"]


class Whitening(WhiteningFit):
    """Whitening of sentence vectors or any others, arrays or tensors.

    Args:
        dim: dimensions to keep: a number, a share of the variance in (0, 1), "participation", or None for all that have
            variance (`danlu.text.whitening`).
        beta: share of the mean that is subtracted.
        gamma: how much of the scales is evened out; 0 only rotates.
        ridge: added to every eigenvalue, in units of the largest.
        eps: eigenvalues up to eps times the largest count as 0; None: 1e-9, or 1e-6 where products were float32.
        normalize: bring results to length 1.
        products: "float32", "float64" or None, as of `danlu.math.moments`.

    Wrong values are refused when vectors are seen. Fitted, it has mean_ (D,), eigenvalues_ (D,), kernel_ (D, k), bias_
    (k,), all float64 tensors, n_samples_seen_ and n_features_in_.

    >>> w = Whitening().fit([[1.0, 0.0], [3.0, 0.0], [1.0, 4.0], [3.0, 4.0]])
    >>> w.transform([[3.0, 4.0]])  # a corner: one standard deviation away on both axes
    array([[1., 1.]])
    """

    def __init__(
        self,
        dim: int | float | str | None = None,
        beta: float = 1.0,
        gamma: float = 1.0,
        ridge: float = 0.0,
        eps: float | None = None,
        normalize: bool = False,
        products: str | None = None,
    ) -> None:
        self.dim, self.beta, self.gamma, self.ridge, self.eps = dim, beta, gamma, ridge, eps
        self.normalize, self.products = normalize, products

    def transform(self, X: Any) -> Any:
        """Whitened vectors, eq. (1).

        Args:
            X: (N, D) array, tensor or nested list; a vector with nan gives nan, the others do not notice.

        Returns:
            (N, k), an array for arrays and lists, else a tensor; floats keep their dtype, whole numbers give float64. A
            tensor that is part of a graph stays so.

        Raises:
            ValueError: not fitted, vectors of another form or size, a dim above the rank.
        """
        solved = self._solved()
        kernel, center = solved.kernel, solved.center
        source = two_axes(X, "transform")
        _check_width(source.shape[1], len(kernel), "transform", "features")
        if isinstance(source, Tensor):
            kernel, center = kernel.to(source.device), center.to(source.device)
            if source.requires_grad and torch.is_grad_enabled():
                return whiten(source, kernel, center, self.normalize)
        parts = (part for batch in tensors_of(source) for part in batch.split(ROWS))
        out: Tensor | None = None
        begin = 0
        for part in parts:
            y = whiten(part, kernel, center, self.normalize)
            if out is None:
                out = y.new_empty(len(source), y.shape[1])
            out[begin : begin + len(y)] = y
            begin += len(y)
        if out is None:
            none = source if isinstance(source, Tensor) else torch.from_numpy(source.astype(float_kind(source.dtype)))
            out = (none if none.is_floating_point() else none.double()).new_zeros(0, kernel.shape[1])
        return out if isinstance(X, Tensor) else out.numpy()

    def fit_transform(self, X: Any, y: Any = None) -> Any:
        """`fit` and `transform` of the same vectors.

        Args:
            X: (N, D) array, tensor or nested list.
            y: not used.

        Returns:
            As of `transform`.

        Raises:
            ValueError: as of both.
        """
        return self.fit(X).transform(X)

    def inverse_transform(self, X: Any) -> Any:
        """The vectors that these whitened ones come from; with k < rank their nearest points in the kept directions.

        Args:
            X: (N, k) array, tensor or nested list.

        Returns:
            (N, D), in the kind of X, computed in float64.

        Raises:
            ValueError: not fitted, vectors of another form or size, or normalize=True, which forgets the lengths.
        """
        if self.normalize:
            raise ValueError("normalize=True cannot be inverted, lengths are lost; set_params(normalize=False) before")
        solved = self._solved()
        source = two_axes(X, "inverse_transform")
        _check_width(source.shape[1], solved.kernel.shape[1], "inverse_transform", "dimensions")
        back = (solved.kernel / solved.kernel.square().sum(0)).mT  # (k, D) K^+: the columns of K are orthogonal
        x = source.double() if isinstance(source, Tensor) else torch.from_numpy(source.astype(np.float64))
        x = x @ back.to(x.device) + solved.center.to(x.device)  # eq. (1)
        if isinstance(X, Tensor):
            return x.to(X.dtype) if X.is_floating_point() else x
        return x.numpy().astype(source.dtype if source.dtype.kind == "f" else np.float64, copy=False)

    def to_module(self) -> WhiteningModule:
        """The map as a torch module that also stands in a SentenceTransformer.

        Returns:
            A WhiteningModule in float32.

        Raises:
            ValueError: not fitted.
        """
        solved = self._solved()
        return WhiteningModule.of(solved.kernel, solved.center, self.normalize)

    def to_linear(self, dtype: torch.dtype = torch.float32) -> nn.Linear:
        """The map as one linear layer, the mean folded into the bias; normalisation is not part of it.

        Args:
            dtype: of the layer. Where the mean is large beside the spread, x K and b nearly cancel and float32 loses as
                many digits as the mean is larger; `to_module` does not.

        Returns:
            nn.Linear(D, k).

        Raises:
            ValueError: not fitted.
        """
        kernel = self.kernel_
        layer = nn.Linear(kernel.shape[0], kernel.shape[1], device=kernel.device, dtype=dtype)
        with torch.no_grad():
            layer.weight.copy_(kernel.mT)
            layer.bias.copy_(self.bias_)
        return layer

    def to_dense(self) -> Dense:
        """The map as a module of sentence-transformers itself, so that the saved model opens without danlu.

        Returns:
            `Dense(D, k)` without an activation; see `to_linear` for what it may lose.

        Raises:
            ImportError: sentence-transformers is not installed.
            ValueError: not fitted.
        """
        try:
            import sentence_transformers
        except ImportError:
            raise ImportError(
                'to_dense needs sentence-transformers; pip install "danlu[sentence]", or use to_linear()'
            ) from None
        newer = hasattr(sentence_transformers, "sentence_transformer")  # version 6
        room = "sentence_transformers.sentence_transformer.modules" if newer else "sentence_transformers.models"
        dense: Any = importlib.import_module(room).Dense
        layer = self.to_linear()
        weight, bias = layer.weight.detach(), layer.bias.detach()
        k, dim = weight.shape
        made: Dense = dense(dim, k, activation_function=nn.Identity(), init_weight=weight, init_bias=bias)
        return made

    def save(self, path: str | Path) -> None:
        """Write options and statistics, all that `load` needs to transform and to go on fitting.

        Args:
            path: of a safetensors file.

        Raises:
            ValueError: not fitted.
        """
        held = self._statistics()
        about = {
            "count": held.count,
            "products": str(held.products).removeprefix("torch."),
            "params": self.get_params(),
        }
        tensors = {"mean": held.mean.cpu().contiguous(), "scatter": held.scatter.cpu().contiguous()}
        Path(path).write_bytes(save(tensors, metadata={"danlu.whitening": json.dumps(about)}))

    @classmethod
    def load(cls, path: str | Path) -> Whitening:
        """What `save` wrote.

        Args:
            path: of the file.

        Returns:
            An equal Whitening.

        Raises:
            InputError: the file is missing, damaged, or not of a Whitening.
        """
        try:
            with safe_open(str(path), framework="pt") as file:
                about = json.loads((file.metadata() or {})["danlu.whitening"])
                mean, scatter = file.get_tensor("mean"), file.get_tensor("scatter")
            products = {"float32": torch.float32, "float64": torch.float64}[about["products"]]
            found = cls(**about["params"])
            found.moments_ = Moments(int(about["count"]), mean, scatter, products)
        except (FileNotFoundError, IsADirectoryError):
            raise InputError(f"{path} is no file; give the path that Whitening.save wrote") from None
        except (SafetensorError, OSError, ValueError, KeyError, TypeError) as error:
            raise InputError(f"{path} was not written by Whitening.save, or is damaged ({error})") from None
        return found

    def report(self) -> dict[str, float]:
        """How the vectors lie and whether there were enough of them.

        Returns:
            vectors, features, dim, vectors_per_feature (under about 10 whitening amplifies noise: lower gamma or dim,
            or set ridge), participation (directions that carry the variance), condition (of the kept eigenvalues),
            share (of the variance that is kept), mean_to_spread (length of the mean beside the root of the variance).

        Raises:
            ValueError: not fitted.
        """
        solved = self._solved()
        values, k, held = solved.axes.values, solved.kernel.shape[1], solved.held
        total, spread, last = values.sum().item(), held.covariance.trace().sqrt().item(), values[k - 1].item()
        return {
            "vectors": held.count,
            "features": len(values),
            "dim": k,
            "vectors_per_feature": held.count / len(values),
            "participation": participation_ratio(values),
            "condition": values[0].item() / last if last else float("inf"),
            "share": values[:k].sum().item() / total if total else 0.0,
            "mean_to_spread": held.mean.norm().item() / spread if spread else float("inf"),
        }

    def get_feature_names_out(self, input_features: Any = None) -> np.ndarray[Any, Any]:
        """Names of the results, as scikit-learn wants them."""
        return np.array([f"whitening{i}" for i in range(self.kernel_.shape[1])], dtype=object)


def _check_width(given: int, wanted: int, what: str, unit: str) -> None:
    if given != wanted:
        raise ValueError(f"{what} got vectors of {given} {unit}, this Whitening has {wanted}; use the same encoder")
