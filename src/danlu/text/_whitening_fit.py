r"""The half of `danlu.text.Whitening` that looks at vectors: statistics, and the map that they and the options make.

    statistics   n, mu, M of all vectors so far (`danlu.math.moments`)                                        (1)

Source: see `danlu.text.whitening_transformer`.
Shapes: N vectors, D features, k kept dimensions.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple, Self

import numpy as np
import torch
from torch import Tensor

from danlu.math.moments import Moments, all_reduce_moments, merge_moments, moments
from danlu.text.whitening import Axes, default_eps, kernel_of, principal_axes

__all__ = ["ROWS", "WhiteningFit", "float_kind", "tensors_of", "two_axes"]

ROWS = 8192  # vectors handled at a time
PARAMS = ("dim", "beta", "gamma", "ridge", "eps", "normalize", "products")
PRODUCTS = {None: None, "float32": torch.float32, "float64": torch.float64}


class Solved(NamedTuple):
    """A map, and the statistics and options it belongs to."""

    held: Moments
    options: tuple[Any, ...]
    axes: Axes
    kernel: Tensor
    center: Tensor


class NotFitted(ValueError, AttributeError):
    """Nothing was fitted yet; an AttributeError too, so that hasattr(whitening, "kernel_") says no."""


class WhiteningFit:
    """Statistics of a whitening. Source: see the module. Shapes: see the module."""

    moments_: Moments
    dim: int | float | str | None
    beta: float
    gamma: float
    ridge: float
    eps: float | None
    normalize: bool
    products: str | None
    _solution: Solved | None = None

    def fit(self, X: Any, y: Any = None) -> Self:
        """Statistics of these vectors alone.

        Args:
            X: (N, D) array, tensor or nested list, or an iterator over such batches, which is read once.
            y: not used; scikit-learn passes it.

        Returns:
            Itself.

        Raises:
            ValueError: vectors of another form, nan or infinities, no two different ones, a dim above the rank; what
                was fitted before stays then.
        """
        held: Moments | None = None
        for batch in X if isinstance(X, Iterator) else [X]:
            part = self._seen(batch)
            held = part if held is None else merge_moments(held, part)
        if held is None:
            raise ValueError("fit got an iterator without batches; give vectors (N, D), or an iterator not yet read")
        self._solution = self._solve(held)
        self.moments_ = held
        return self

    def partial_fit(self, X: Any, y: Any = None) -> Self:
        """Statistics of these vectors and of all before; the map is computed when it is next asked for.

        Args:
            X: (N, D) array, tensor or nested list.
            y: not used.

        Returns:
            Itself.

        Raises:
            ValueError: vectors of another form or size than before, nan or infinities; nothing was added then.
        """
        own = self._seen(X)
        self.moments_ = merge_moments(self.moments_, own) if self._fitted else own
        return self

    def merge(self, other: WhiteningFit) -> Self:
        """Add the statistics of another one, say of another process or file; its options are not looked at.

        Args:
            other: fitted.

        Returns:
            Itself.

        Raises:
            ValueError: either has seen no vectors, or vectors of another size.
        """
        self.moments_ = merge_moments(self._statistics(), other._statistics())
        return self

    def all_reduce(self, group: torch.distributed.ProcessGroup | None = None) -> Self:
        """Replace the statistics by those of all processes of torch.distributed.

        Args:
            group: of processes; None: all.

        Returns:
            Itself.

        Raises:
            ValueError: no vectors were seen here, or torch.distributed is not initialised.
        """
        self.moments_ = all_reduce_moments(self._statistics(), group)
        return self

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        """The options; scikit-learn's interface."""
        return {name: getattr(self, name) for name in PARAMS}

    def set_params(self, **params: Any) -> Self:
        """Change options; the statistics stay, so no fitting is needed.

        Args:
            **params: names and values of the constructor.

        Returns:
            Itself.

        Raises:
            ValueError: there is no such option.
        """
        for name in params:
            if name not in PARAMS:
                raise ValueError(f"Whitening has no option {name!r}; there are {', '.join(PARAMS)}")
        for name, value in params.items():
            setattr(self, name, value)
        return self

    @property
    def n_samples_seen_(self) -> int:
        """Vectors so far."""
        return self._statistics().count

    @property
    def n_features_in_(self) -> int:
        """D."""
        return len(self._statistics().mean)

    @property
    def mean_(self) -> Tensor:
        """Mean (D,) of the vectors, whatever beta is."""
        return self._statistics().mean

    @property
    def eigenvalues_(self) -> Tensor:
        """All of them, descending, about beta times the mean."""
        return self._solved().axes.values

    @property
    def kernel_(self) -> Tensor:
        """K (D, k)."""
        return self._solved().kernel

    @property
    def bias_(self) -> Tensor:
        """Minus beta mu K, (k,)."""
        return -self._solved().center @ self._solved().kernel

    def __sklearn_is_fitted__(self) -> bool:
        return self._fitted

    def __sklearn_tags__(self) -> Any:
        from sklearn.utils import Tags, TargetTags, TransformerTags

        kept = TransformerTags(preserves_dtype=["float64", "float32"])
        return Tags(estimator_type=None, target_tags=TargetTags(required=False), transformer_tags=kept)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(f'{name}={value!r}' for name, value in self.get_params().items())})"

    @property
    def _fitted(self) -> bool:
        return "moments_" in self.__dict__

    def _statistics(self) -> Moments:
        if not self._fitted:
            raise NotFitted("this Whitening has seen no vectors; call fit or partial_fit first")
        return self.moments_

    def _seen(self, X: Any) -> Moments:
        """Statistics of one batch."""
        if self.products not in PRODUCTS:
            raise ValueError(f"products must be 'float32', 'float64' or None, got {self.products!r}")
        held: Moments | None = None
        for batch in tensors_of(two_axes(X, "fit")):
            part = moments(batch, PRODUCTS[self.products])
            held = part if held is None else merge_moments(held, part)
        if held is None:
            raise ValueError("fit got no vectors; give at least two different ones")
        return held

    def _solved(self) -> Solved:
        """The map of the statistics and options as they are now, solved once for each."""
        held = self._statistics()
        if self._solution is None or self._solution.held is not held or self._solution.options != self._options():
            self._solution = self._solve(held)
        return self._solution

    def _solve(self, held: Moments) -> Solved:
        known = self._solution
        eps = default_eps(held.products) if self.eps is None else self.eps
        if known is not None and known.held is held and known.options[0] == self.beta:
            axes = known.axes
        else:
            axes = principal_axes(held.mean, held.covariance, self.beta)
        kernel = kernel_of(axes, self.dim, self.gamma, self.ridge, eps)
        return Solved(held, self._options(), axes, kernel, self.beta * held.mean)

    def _options(self) -> tuple[Any, ...]:
        return self.beta, self.dim, self.gamma, self.ridge, self.eps


def two_axes(X: Any, what: str) -> Any:
    """X as a tensor or array of two axes.

    Args:
        X: a tensor, or what numpy makes an array of.
        what: the name of the caller, for the message.

    Returns:
        (N, D) tensor or array of real numbers.

    Raises:
        ValueError: it is something else.
    """
    source = X if isinstance(X, Tensor) else np.asarray(X)
    real = not source.is_complex() if isinstance(source, Tensor) else source.dtype.kind in "fiub"
    if source.ndim != 2 or not source.shape[1] or not real:
        raise ValueError(
            f"{what} needs vectors (N, D) of real numbers, got {type(X).__name__} {tuple(source.shape)} of "
            f"{source.dtype}; one vector is x[None], a sparse matrix x.toarray()"
        )
    return source


def tensors_of(source: Any) -> Iterator[Tensor]:
    """The vectors as tensors of floats: one view where the memory allows it, else copies of up to `ROWS` vectors.

    Args:
        source: from `two_axes`.

    Returns:
        An iterator over (n, D) tensors; nothing of no vectors.
    """
    if not len(source):
        return
    if isinstance(source, Tensor):
        yield source.detach() if source.is_floating_point() else source.double()
        return
    kind = float_kind(source.dtype)
    straight = all(step >= 0 and step % kind.itemsize == 0 for step in source.strides)
    if source.flags.writeable and straight and kind == source.dtype:
        yield torch.from_numpy(source)
        return
    for begin in range(0, len(source), ROWS):
        yield torch.from_numpy(np.array(source[begin : begin + ROWS], dtype=kind, order="C"))


def float_kind(dtype: np.dtype[Any]) -> np.dtype[Any]:
    """The dtype that vectors of this one are computed with: native floats of up to 64 bits stay.

    Args:
        dtype: of an array.

    Returns:
        A dtype that torch has.
    """
    return dtype.newbyteorder("=") if dtype.kind == "f" and dtype.itemsize <= 8 else np.dtype(np.float64)
