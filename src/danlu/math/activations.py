r"""Activations by the names that checkpoints give them, and the three forms of GELU that hide behind those names.

    erf        x Phi(x) = x/2 (1 + erf(x / sqrt 2))                                              (1)
    tanh       x/2 (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3)))                                     (2)
    sigmoid    x sigma(1.702 x)                                                                  (3)

Phi is the normal distribution function, sigma the logistic one. (2) stays within 4.8e-4 of (1), (3) within 2.1e-2;
1.702 is the minimax constant for Phi, not for x Phi, whose own would be 1.7729 (`danlu.math.gelu_fit` derives all of
them). A checkpoint keeps the form that it was trained with: Google's BERT, GPT and GPT-2 use (2), HuggingFace's and
bert4keras' BERT (1), CLIP (3).

Torch gives nan at -inf in all three forms and, for (1), at +inf too. `gelu` gives their limits, 0 and inf. `activation`
hands out torch's own kernels without that guard, which would cost a pass over the hidden states of every layer.

Source: Hendrycks and Gimpel, 2016, arXiv:1606.08415; the constants: kexue.fm/archives/7309.
Shapes: any; a result has the shape and dtype of its input.
"""

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["activation", "activation_name", "gelu"]

_FAR = 1000.0  # here and beyond the three forms are exactly 0 and x in every dtype


def gelu(x: Tensor, form: str = "erf") -> Tensor:
    """The Gaussian error linear unit in one of its three forms, eq. (1) to (3), with its limits 0 and inf at infinity.

    Args:
        x: any shape, any float dtype.
        form: "erf", "tanh" or "sigmoid".

    Returns:
        The shape and dtype of x; nan stays nan.

    Raises:
        ValueError: an unknown form.

    >>> gelu(torch.tensor([-torch.inf, 0.0, 1.0, torch.inf]))  # 1 * Phi(1) = 0.8413
    tensor([-0.0000, 0.0000, 0.8413,    inf])
    """
    if form not in ("erf", "tanh", "sigmoid"):
        raise ValueError(f"form must be 'erf', 'tanh' or 'sigmoid', got {form!r}; for other names use activation")
    kernel = _KERNELS["gelu" if form == "erf" else f"gelu_{form}"]
    return torch.where(x > _FAR, x, kernel(x.clamp(-_FAR, _FAR)))


def activation(name: str | None) -> Callable[[Tensor], Tensor]:
    """The function that a configuration's activation name means.

    Args:
        name: a canonical name of `activation_name` or a synonym of one, in any case; None: linear.

    Returns:
        A function of one tensor, the same object at every call. leaky_relu has bert4keras' slope 0.2.

    Raises:
        ValueError: the name is unknown; the message lists all.

    >>> activation("relu2")(torch.tensor([-1.0, 3.0]))
    tensor([0., 9.])
    """
    return _KERNELS[activation_name(name)]


def activation_name(name: str | None) -> str:
    """The canonical name of an activation.

    Args:
        name: a name that HuggingFace, bert4keras or Google's files use, in any case; None: linear.

    Returns:
        gelu, gelu_tanh, gelu_sigmoid, relu, squared_relu, silu, tanh, sigmoid, linear or leaky_relu; two names of one
        function give the same.

    Raises:
        ValueError: the name is unknown; the message lists all.

    >>> activation_name("gelu_new"), activation_name("swish"), activation_name(None)
    ('gelu_tanh', 'silu', 'linear')
    """
    key = "linear" if name is None else name.lower()
    key = _SYNONYMS.get(key, key)
    if key not in _KERNELS:
        raise ValueError(f"no activation {name!r}; there are {', '.join(_KERNELS)}, and also {', '.join(_SYNONYMS)}")
    return key


def _gelu_sigmoid(x: Tensor) -> Tensor:
    return x * torch.sigmoid(1.702 * x)  # eq. (3)


def _squared_relu(x: Tensor) -> Tensor:
    return F.relu(x).square()


def _linear(x: Tensor) -> Tensor:
    return x


_KERNELS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": F.gelu,  # eq. (1)
    "gelu_tanh": partial(F.gelu, approximate="tanh"),  # eq. (2)
    "gelu_sigmoid": _gelu_sigmoid,
    "relu": F.relu,
    "squared_relu": _squared_relu,
    "silu": F.silu,
    "tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
    "linear": _linear,
    "leaky_relu": partial(F.leaky_relu, negative_slope=0.2),
}

_SYNONYMS = {
    "gelu_erf": "gelu",
    "gelu_python": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "gelu_accurate": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_python_tanh": "gelu_tanh",
    "quick_gelu": "gelu_sigmoid",
    "relu2": "squared_relu",
    "swish": "silu",
    "none": "linear",
}
