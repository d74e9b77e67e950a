r"""What training did to predictions, example by example, and how far the account is from closing.

    f_T(x) = f_0(x) + sum_i A_i(x) + D(x) + r(x)                                                            (1)
    r = (f_T - f_0 - M) + (M - sum_i A_i - D)                                                               (2)
    a_i(x) = A_i(x) / K_i(x),     K_i(x) = sum over the steps of the path kernel of x and x_i               (3)

A_i is what example i contributed, D what weight decay did, M what the moves of the parameters did by the quadrature.
The first part of r is the error of the quadrature, the second belongs to moves that no example made: terms of the loss
without examples, clipping by value, parameters set from outside. Both are always at hand, since an account that does
not close explains nothing.

a_i is Domingos' coefficient, a mean of -dl/df along the path only as long as the tangent kernel keeps its sign; where
it cancels, a_i grows without bound and says nothing. A_i stays.

Source: kexue.fm/archives/8009; Domingos, 2020, arXiv:2012.00152.
Shapes: m rows explained, c outputs of each, N training examples.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["PathAttribution"]


@dataclass(frozen=True)
class PathAttribution:
    """The account of eq. (1), in float64; str() is one line on how well it closes.

    contributions: A (m, c, N). decay: D (m, c). before, after: f_0 and f_T (m, c). moved: M (m, c). kernel: K
    (m, c, N, c) and kernel_size the same of absolute values, where they were asked for.
    """

    contributions: Tensor
    decay: Tensor
    before: Tensor
    after: Tensor
    moved: Tensor
    kernel: Tensor | None = None
    kernel_size: Tensor | None = None

    @property
    def residual(self) -> Tensor:
        """r of eq. (1), (m, c)."""
        return self.after - self.before - self.decay - self.contributions.sum(dim=-1)

    @property
    def quadrature_error(self) -> Tensor:
        """The first part of eq. (2), (m, c): more nodes make it smaller."""
        return self.after - self.before - self.moved

    @property
    def unattributed(self) -> Tensor:
        """The second part of eq. (2), (m, c): moves that the account does not know."""
        return self.moved - self.decay - self.contributions.sum(dim=-1)

    @property
    def error(self) -> float:
        """Largest |r| over the largest prediction before or after; nan if anything is."""
        largest = torch.maximum(self.before.abs().max(), self.after.abs().max())
        return float(self.residual.abs().max() / largest.clamp_min(torch.finfo(largest.dtype).tiny))

    def trusted(self, limit: float = 0.05) -> "PathAttribution":
        """The account itself, if it closes; call it before anything is shown.

        Args:
            limit: greatest `error` that is let pass.

        Returns:
            self.

        Raises:
            ValueError: the error is larger, or nan.
        """
        if not self.error <= limit:
            raise ValueError(
                f"the contributions miss the predictions by {self.error:.2g} of their size, more than {limit:g}: "
                f"quadrature {float(self.quadrature_error.abs().max()):.3g}, moves that no example made "
                f"{float(self.unattributed.abs().max()):.3g}. Raise nodes against the first; against the second see "
                "that .grad is the sum of the examples' gradients when step() is called"
            )
        return self

    def top(self, row: int, output: int = 0, count: int = 10, opposing: bool = False) -> list[tuple[int, float]]:
        """The examples that pushed a prediction up the most, or down.

        Args:
            row: which of the rows explained.
            output: which of its outputs.
            count: how many; fewer where fewer pushed that way.
            opposing: those that pushed it down.

        Returns:
            (index of the example, contribution), the largest effect first; of equal ones the lower index.

        Raises:
            ValueError: count < 1.
        """
        if count < 1:
            raise ValueError(f"count must be >= 1, got {count}")
        some = self.contributions[row, output] * (-1 if opposing else 1)
        order = some.argsort(descending=True, stable=True)[:count].tolist()
        return [(i, float(self.contributions[row, output, i])) for i in order if some[i] > 0]

    def coefficients(self, least: float = 0.1) -> Tensor:
        """a_i of eq. (3), where the kernel does not cancel.

        Args:
            least: smallest |K_i| that is divided by, as a share of the sum of the absolute values along the path.

        Returns:
            (m, N); nan where the kernel cancels more than that, and for examples that were never met.

        Raises:
            ValueError: the kernel was not kept, or there are several outputs: a_i then is no number.
        """
        if self.kernel is None or self.kernel_size is None:
            raise ValueError("coefficients needs the path kernel; say kernel=True where the path is explained")
        if self.before.shape[1] != 1:
            raise ValueError(
                f"with {self.before.shape[1]} outputs the path kernel is a matrix for each example and a_i is not "
                "unique; explain one number (a loss, or a model that returns one), or use contributions"
            )
        kernel, size = self.kernel[:, 0, :, 0], self.kernel_size[:, 0, :, 0]  # (m, N)
        clear = (kernel.abs() > least * size) & (size > 0)
        return torch.where(clear, self.contributions[:, 0] / kernel.masked_fill(~clear, 1.0), torch.nan)  # eq. (3)

    def __str__(self) -> str:
        rows, outputs, examples = self.contributions.shape
        return (
            f"{rows} rows x {outputs} outputs from {examples} examples: error {self.error:.2e} of the largest "
            f"prediction (quadrature {float(self.quadrature_error.abs().max()):.2e}, unattributed "
            f"{float(self.unattributed.abs().max()):.2e})"
        )
