r"""Least squares for many small problems at once: exact Jacobians in one pass, and Levenberg and Marquardt's steps.

    J = dr/dx   by forward mode: P copies of x, copy j with the tangent e_j, in one call of r                (1)
    minimise ||r + J d||^2 + lam ||D d||^2,   D = lengths of the columns of J                                (2)
    gain = (||r(x)||^2 - ||r(x + d)||^2) / (||r||^2 - ||r + J d||^2);   x + d is taken if it is better       (3)
    taken: lam <- lam max(1/3, 1 - (2 gain - 1)^3), nu <- 2;   refused: lam <- lam nu, nu <- 2 nu            (4)

x are P unknowns, r its N residuals. Every row has its own lam and stops on its own. Steps come from the singular values
of J D^-1, so that a matrix without full rank is no accident; D makes them independent of the units of x. Residuals that
are not finite count as worse than anything: a row that wanders off is called back, one that starts there stays.

Source: Levenberg, 1944; Marquardt, 1963, doi:10.1137/0111030; More, 1978, doi:10.1007/BFb0067700 (D and the tests for
an end); (4): Nielsen, 1999, IMM-REP-1999-05.
Shapes: R rows, P unknowns, N residuals.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.autograd.forward_ad as forward_mode
from torch import Tensor

__all__ = ["LeastSquares", "levenberg_marquardt", "rowwise_jacobian"]

Residuals = Callable[[Tensor, Tensor], Tensor]
START_DAMPING, LEAST_DAMPING, MOST_DAMPING = 1e-3, 1e-14, 1e20


@dataclass(frozen=True)
class LeastSquares:
    """Where `levenberg_marquardt` ended.

    Args:
        x: (R, P) unknowns.
        ssr: (R,) sums of squared residuals; inf for a row that never had finite ones.
        residuals: (R, N) there.
        jacobian: (R, N, P) there.
        iterations: (R,) int64, steps tried.
        converged: (R,) bool; False: the steps ran out, or there was never a finite residual.
    """

    x: Tensor
    ssr: Tensor
    residuals: Tensor
    jacobian: Tensor
    iterations: Tensor
    converged: Tensor


def rowwise_jacobian(function: Callable[[Tensor], Tensor], x: Tensor) -> tuple[Tensor, Tensor]:
    """The value and the exact Jacobian of a function of each row, eq. (1), by one call.

    Args:
        function: (P, R, P) -> (P, R, N): any leading axes, the rows do not see one another; twice (P, R, N) in memory.
        x: (R, P) floats.

    Returns:
        (R, N) and (R, N, P), without a graph.

    Raises:
        ValueError: x is not (R, P) with P >= 1.

    >>> rowwise_jacobian(lambda x: x.prod(-1, keepdim=True), torch.tensor([[2.0, 3.0]]))
    (tensor([[6.]]), tensor([[[3., 2.]]]))
    """
    if x.ndim != 2 or not x.shape[1] or not x.is_floating_point():
        raise ValueError(f"rowwise_jacobian needs floats (rows, unknowns), got {x.dtype} {tuple(x.shape)}")
    size = x.shape[1]
    with torch.inference_mode(False), torch.no_grad(), forward_mode.dual_level():
        copies = x.detach().expand(size, *x.shape).clone()  # (P, R, P)
        tangents = torch.eye(size, dtype=x.dtype, device=x.device)[:, None].expand_as(copies).clone()
        value, slope = forward_mode.unpack_dual(function(forward_mode.make_dual(copies, tangents)))
        value = value[0].clone()  # (R, N)
        slope = value.new_zeros(size, *value.shape) if slope is None else slope.clone()
    return value, slope.permute(1, 2, 0).contiguous()  # eq. (1)


def levenberg_marquardt(
    residuals: Residuals, start: Tensor, max_iter: int = 100, tol: float = 1e-10, max_move: float = math.inf
) -> LeastSquares:
    """The unknowns of each row with the least sum of squared residuals near its start, eqs. (2) to (4).

    Args:
        residuals: (x, rows) -> r: x (..., R', P) with any leading axes, rows (R',) int64 which rows of `start` these
            are, r (..., R', N).
        start: (R, P), float64 unless few digits will do.
        max_iter: most steps tried, >= 1.
        tol: a row ends when a step changes its sum of squares by less than tol of it, as predicted too, or its unknowns
            by less than tol of their size (or of 1).
        max_move: most that an unknown may move in one step.

    Returns:
        A record of R rows.

    Raises:
        ValueError: start is not (R, P), or max_iter, tol or max_move is out of range.

    >>> def bent(x, rows):  # Rosenbrock's valley: the least is at (1, 1)
    ...     return torch.stack((10 * (x[..., 1] - x[..., 0] ** 2), 1 - x[..., 0]), -1)
    >>> levenberg_marquardt(bent, torch.tensor([[-1.2, 1.0]], dtype=torch.float64)).x
    tensor([[1.0000, 1.0000]], dtype=torch.float64)
    """
    if start.ndim != 2 or not start.is_floating_point():
        raise ValueError(f"start must be floats (rows, unknowns), got {start.dtype} {tuple(start.shape)}")
    if max_iter < 1 or not tol >= 0 or not max_move > 0:
        raise ValueError(
            f"needs max_iter >= 1, tol >= 0 and max_move > 0; got max_iter={max_iter}, tol={tol}, max_move={max_move}"
        )
    every = torch.arange(len(start), device=start.device)
    x = start.detach().clone()
    r, jacobian = rowwise_jacobian(lambda z: residuals(z, every), x)
    ssr = sum_of_squares(r, jacobian)
    iterations, converged = torch.zeros_like(every), torch.zeros_like(every, dtype=torch.bool)
    damping, growth = torch.full_like(ssr, START_DAMPING), torch.full_like(ssr, 2.0)
    rows = every[ssr.isfinite()]  # those still under way
    for _ in range(max_iter):
        if not len(rows):
            break
        move, predicted = damped_step(jacobian[rows], r[rows], damping[rows], max_move)

        def of_rows(z: Tensor, rows: Tensor = rows) -> Tensor:
            return residuals(z, rows)

        new_r, new_jacobian = rowwise_jacobian(of_rows, x[rows] + move)
        new_ssr = sum_of_squares(new_r, new_jacobian)
        old = ssr[rows]
        gain = (old - new_ssr) / predicted.clamp_min(torch.finfo(old.dtype).tiny)  # eq. (3)
        taken = new_ssr < old
        iterations[rows] += 1
        better = rows[taken]
        x[better] += move[taken]
        r[better], jacobian[better], ssr[better] = new_r[taken], new_jacobian[taken], new_ssr[taken]
        eased = damping[rows] * (1.0 - (2.0 * gain.clamp(-1.0, 2.0) - 1.0) ** 3).clamp_min(1.0 / 3.0)
        damping[rows] = torch.where(taken, eased.clamp_min(LEAST_DAMPING), damping[rows] * growth[rows])  # eq. (4)
        growth[rows] = torch.where(taken, 2.0, 2.0 * growth[rows])
        small = (move.abs() <= tol * (1.0 + x[rows].abs())).all(-1)
        flat = (predicted <= tol * old) & ((old - new_ssr).abs() <= tol * old) & (taken | (new_ssr == old))
        flat |= predicted <= 4 * torch.finfo(old.dtype).eps * old  # nothing left to gain but rounding
        converged[rows] = small | flat | (ssr[rows] == 0)
        rows = rows[~converged[rows] & (damping[rows] < MOST_DAMPING)]
    return LeastSquares(x, ssr, r, jacobian, iterations, converged)


def damped_step(jacobian: Tensor, r: Tensor, damping: Tensor, max_move: float) -> tuple[Tensor, Tensor]:
    """The step of eq. (2), (R, P), cut to max_move, and how much of ||r||^2 the linear model says it takes away."""
    lengths = torch.linalg.vector_norm(jacobian, dim=1)  # (R, P)
    lengths = torch.where(lengths > 0, lengths, 1.0)
    u, s, vh = torch.linalg.svd(jacobian / lengths[:, None], full_matrices=False)
    along = (u.mT @ r[..., None])[..., 0]  # (R, min(N, P))
    move = -(vh.mT @ (s * along / (s.square() + damping[:, None]))[..., None])[..., 0] / lengths  # eq. (2)
    longest = move.abs().amax(-1, keepdim=True)
    if math.isfinite(max_move):
        move = move * (max_move / longest.clamp_min(max_move))
    image = (jacobian @ move[..., None])[..., 0]
    return move, -(image * (2.0 * r + image)).sum(-1)


def sum_of_squares(r: Tensor, jacobian: Tensor) -> Tensor:
    """||r||^2 of each row; inf where it or the Jacobian is not finite."""
    ssr = r.square().sum(-1)
    good = ssr.isfinite() & jacobian.isfinite().flatten(1).all(1)
    return torch.where(good, ssr, torch.inf)
