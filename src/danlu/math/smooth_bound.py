r"""How far the smooth functions of danlu.math are from the hard ones at most, for a sharpness K.

    max       "logsumexp" log(n) / K  (all tied);    "mean" W((n - 1) / e) / K  (the others tied at that + 1 / K)   (1)
    one-hot   1 - p_max <= w / (1 + w),  w = (n - 1) e^{-K g}                                                       (2)
    argmax    max over s of s (n - 1 + n - s) / 2 / (e^{K g} + s):  the s places farthest from the peak             (3)
    rank      sum_{j < n} sigma(-K g j)                                                                             (4)
    relu      log(2) / K;    abs  "sqrt" 1 / K,  "tanh" W(1 / e) / K,  "logcosh" 2 log(2) / K                       (5)
    step      sigma(-K g);    sign  2 sigma(-2 K g)                                                                 (6)
    floor     sum_{j >= 0} sigma(-K (g + j)) - sigma(-K (1 - g + j)),   round the same                              (7)
    top-k     eps = max over t of min(k (1 - F(K g - t)), (n - k) F(-t))                                            (8)

W is Lambert's function, w e^w = y; sigma the logistic one; F that of the method of `smooth_topk`. g, the gap, is the
distance to where the hard function jumps: between the two largest items (one-hot, argmax), between any two (rank), to
0 (step, sign), to an integer (floor), to a half (round), between the k-th and the next item (top-k). eps is the weight
on the wrong side, half of sum |p - h|. No bound can be lowered: each is met by the case it names, of n items with one
gap between two ties where nothing else is said.

Proofs. (1): at a stationary point of the error e all items but the largest lie e + 1/K below it. (2), (6), (7): the
error falls in every distance. (3): a ratio of linear functions is largest with each weight at 0 or at its bound
e^{-K g}. (4): the j-th nearest item is j g away, and errors from above and below have unlike signs. (8): for any t the
k chosen items lack at most k (1 - F) and the others take at most (n - k) F, and both amounts are equal. For
`method="grad"` the weight of the chosen rises with each of their x (negative association), so ties are the worst case.

Source: log(n) / K: kexue.fm/archives/6620 (2019); the others are worked out here.
"""

import math

from danlu.math.smooth_step import check_sharpness

__all__ = ["smooth_bound"]

METHODS = {
    "max": ("logsumexp", "mean"), "min": ("logsumexp", "mean"), "abs": ("sqrt", "tanh", "logcosh"),
    "topk": ("sigmoid", "laplace", "minexp", "grad"), "onehot": (), "argmax": (), "rank": (), "relu": (), "step": (),
    "sign": (), "floor": (), "round": (),
}  # fmt: skip


def smooth_bound(
    name: str, sharpness: float = 1.0, n: int = 2, k: int = 1, gap: float = 0.0, method: str | None = None
) -> float:
    """The largest distance of a smooth function from the hard one, eqs. (1) to (8).

    Args:
        name: "max", "min", "onehot", "argmax", "rank", "relu", "abs", "step", "sign", "floor", "round" or "topk".
        sharpness: K > 0.
        n: number of items, >= 1, where the function takes items.
        k: of "topk", in [0, n].
        gap: g >= 0, the distance to where the hard function jumps; for "floor" and "round" at most 1/2.
        method: of "max", "min", "abs" or "topk"; None is the function's default.

    Returns:
        The bound: of |p - h| for one item ("onehot"), of half the sum of all |p - h| ("topk"), else of the value.

    Raises:
        ValueError: an unknown name or method, or a number outside its range.

    >>> smooth_bound("max", sharpness=10.0, n=3)  # log(3) / 10
    0.10986122886681098
    """
    check_sharpness(sharpness)
    if name not in METHODS:
        raise ValueError(f"no bound for {name!r}; there are {', '.join(METHODS)}")
    known = METHODS[name]
    method = method or (known[0] if known else None)
    if method is not None and method not in known:
        raise ValueError(f"{name!r} has {'the methods ' + ', '.join(known) if known else 'no methods'}; got {method!r}")
    periodic, counts = name in ("floor", "round"), name == "topk"
    if n < 1 or (counts and not 0 <= k <= n) or not gap >= 0 or (periodic and gap > 0.5):
        raise ValueError(f"smooth_bound needs n >= 1, 0 <= k <= n and gap >= 0 (at most 0.5 for floor and round); got "
                         f"n={n}, k={k}, gap={gap}")  # fmt: skip
    far = sharpness * gap
    if name in ("max", "min"):
        return (math.log(n) if method == "logsumexp" else _lambert((n - 1) / math.e)) / sharpness  # eq. (1)
    if name == "onehot":
        return (n - 1) * math.exp(-far) / (1 + (n - 1) * math.exp(-far))  # eq. (2)
    if name == "argmax":
        near = math.exp(-far)
        return max(near * s * (2 * n - 1 - s) / 2 / (1 + s * near) for s in range(n))  # eq. (3)
    if name == "rank":
        return sum(_sigmoid(-far * j) for j in range(1, n))  # eq. (4)
    if counts:
        return _topk(far, n, k, str(method))
    if periodic and sharpness < 0.5:
        return 0.5 - gap  # the line x - 1/2: the first wave is below 1e-15
    if periodic:
        steps = range(math.ceil(40 / sharpness) + 1)
        return sum(_sigmoid(-far - sharpness * j) - _sigmoid(far - sharpness * (1 + j)) for j in steps)  # eq. (7)
    if name in ("step", "sign"):
        return _sigmoid(-far) if name == "step" else 2 * _sigmoid(-2 * far)  # eq. (6)
    corners = {"sqrt": 1.0, "tanh": _lambert(1 / math.e), "logcosh": 2 * math.log(2), None: math.log(2)}
    return corners[method] / sharpness  # eq. (5)


def _topk(far: float, n: int, k: int, method: str) -> float:
    """Eq. (8), solved: u and v are the distances of t from the k items tied above it and the others below."""
    rest = n - k
    if k == 0 or rest == 0:
        return 0.0
    small = math.exp(-far)
    if method == "minexp":
        return k * rest * small / (k + rest * small)
    if method == "laplace":
        if abs(math.log(k / rest)) <= far:  # u, v >= 0
            return math.sqrt(k * rest * small) / 2
        return k * rest * small / (max(k, rest) * small + min(k, rest))
    if method == "sigmoid":
        tilt = n - 2 * k
        return 2 * k * rest / (n + math.sqrt(tilt**2 + 4 * k * rest / small)) if small > 0 else 0.0
    weights = [math.comb(k, j) * math.comb(rest, j) * math.exp(-far * j) for j in range(min(k, rest) + 1)]
    return sum(j * w for j, w in enumerate(weights)) / sum(weights)  # j of the wrong items are in the subset


def _lambert(y: float) -> float:
    """w with w e^w = y for y >= 0, by Newton's method on a convex function from above."""
    w = math.log1p(y)
    for _ in range(50):
        w -= (w - y * math.exp(-w)) / (1 + w)
    return w


def _sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x)) if x > -700 else 0.0
