r"""Gradient penalty: what adversarial training does to first order, as a term of the loss.

    L + epsilon / 2 ||dL/dx||^2           kind="square"                                  (1)
    L + epsilon ||dL/dx||                 kind="norm"                                    (2)
    mean_i [L_i + epsilon / 2 ||dL_i/dx_i||^2],  or with the norm         form="sample"  (3)

A step on the loss at x + epsilon dL/dx, delta held constant, is a step on (1) up to O(epsilon^2), and at x + epsilon
dL/dx / ||dL/dx|| one on (2); the 1/2 is part of the statement. (The values of the losses differ; the gradients agree.)

x is what the layer (the embedding) gives, one vector for each occurrence of a token: this is the author's program,
which squares before occurrences are added up. `gradient_penalty(loss, model.embed.weight)` squares after: the penalty
that belongs to `fgm_backward`, which moves the matrix. L of form="batch" is the mean over B examples, as in the
author's program. So dL/dx_i is 1/B of dL_i/dx_i, and (1) is 1/B of (3): epsilon means something else when B changes,
and two half batches are not one whole one. form="sample" takes the losses one by one and has neither property, which
makes it the form for accumulation and for several processes; rows must not see each other (no batch norm).

What it asks for. The gradient is differentiated again. Fused attention kernels cannot do that, so torch's attention
runs through its plain path meanwhile, which needs memory for all pairs of tokens. A part that has no second derivative
(compiled through AOT autograd, cuDNN's recurrent layers, a custom function marked once_differentiable) is refused by
name. L must not be scaled, because (1) is quadratic: scale the result (`scaler.scale(penalized_loss(...)).backward()`).

Source: kexue.fm/archives/7234, which credits Ross and Doshi-Velez, 2017, arXiv:1711.09404.
Shapes: B examples; x any shape, for form="sample" (B, ...).
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from danlu.math.precision import wide
from danlu.train.adversarial import as_list, check_epsilon
from danlu.train.adversarial_output import outputs_through
from danlu.train.freelb import find_layer

__all__ = ["GradientPenalty", "gradient_penalty", "penalized_loss"]

ONCE = ("torch::autograd::NotImplemented", "torch::autograd::Error", "CompiledFunctionBackwardBackward")


def penalized_loss(
    loss_fn: Callable[[], Tensor],
    module: nn.Module,
    epsilon: float = 1.0,
    kind: str = "square",
    form: str = "batch",
) -> Tensor:
    """The loss of the current batch and the penalty on its gradient at a layer's output, eqs. (1) to (3).

    Args:
        loss_fn: computes the loss through `module`, not scaled; called once. A scalar, the mean over the examples; for
            form="sample" one loss for each example, (B,).
        module: the layer whose output is x; it returns one tensor.
        epsilon: weight of the penalty, > 0; 1 in the author's program.
        kind: "square" or "norm".
        form: "batch" for one norm over the whole x, "sample" for one for each example.

    Returns:
        Scalar with its graph: call backward() on it, as on any loss. In float32 or better.

    Raises:
        ValueError: epsilon is not > 0, an unknown kind or form, a loss of another shape than the form wants, or one
            that does not go through the module.
        TypeError: the module returns something else than one tensor.
        RuntimeError: a part of the model has no second derivative.

    >>> layer, w = nn.Identity(), nn.Parameter(torch.tensor(3.0))
    >>> x = torch.tensor([[1.0], [2.0]])
    >>> penalized_loss(lambda: (w * layer(x)).mean(), layer)  # 4.5 and a half of 1.5^2 + 1.5^2
    tensor(6.7500, grad_fn=<AddBackward0>)
    >>> penalized_loss(lambda: (w * layer(x)).sum(1), layer, form="sample")  # 4.5 and a half of 3^2
    tensor(9., grad_fn=<AddBackward0>)
    """
    check_epsilon(epsilon, "penalized_loss")
    outputs: list[Tensor] = []

    def watched(_: int, x: Tensor) -> Tensor:
        x = x if x.requires_grad else x.detach().requires_grad_()
        outputs.append(x)
        return x.clone()  # the next layer may work in place

    with outputs_through(module, watched), sdpa_kernel(SDPBackend.MATH):
        loss = loss_fn()
    penalty = gradient_penalty(loss, outputs, kind, form)
    return loss.to(penalty.dtype).mean() + epsilon * penalty  # eqs. (1) to (3)


def gradient_penalty(loss: Tensor, x: Tensor | Sequence[Tensor], kind: str = "square", form: str = "batch") -> Tensor:
    """The penalty alone: half the squared norm of dL/dx, or the norm.

    Args:
        loss: scalar; for form="sample" (B,), the loss of each example.
        x: what the loss was computed from, a tensor or several with one norm over all: a layer's output, an input, a
            parameter. For form="sample" each (B, ...).
        kind: "square" or "norm". At a gradient of exactly 0 the norm's own slope is taken as 0.
        form: "batch" for one norm over everything, "sample" for the mean of one for each example.

    Returns:
        Scalar with its graph, in float32 or better; without epsilon.

    Raises:
        ValueError: an unknown kind or form, a loss of another shape than the form wants, x plays no part in the loss
            or is the table of a sparse embedding, or the gradient depends on nothing that could be trained.
        RuntimeError: a part of what lies between has no second derivative.

    >>> w = nn.Parameter(torch.tensor([3.0, 4.0]))
    >>> gradient_penalty((w**2).sum() / 2, w), gradient_penalty((w**2).sum() / 2, w, kind="norm")  # 25 / 2 and 5
    (tensor(12.5000, grad_fn=<MulBackward0>), tensor(5., grad_fn=<MeanBackward0>))
    """
    if kind not in ("square", "norm") or form not in ("batch", "sample"):
        raise ValueError(
            f"kind must be 'square' or 'norm' and form 'batch' or 'sample', got kind={kind!r} and form={form!r}"
        )
    inputs = as_list(x)
    check_loss(loss, inputs, form)
    grads = torch.autograd.grad(loss.sum(), inputs, create_graph=True, allow_unused=True)
    used = [g for g in grads if g is not None]
    if not used:
        raise ValueError(f"the loss does not depend on x {[tuple(t.shape) for t in inputs]}; give the x it came from")
    if any(g.is_sparse for g in used):
        raise ValueError("x is the table of an embedding with sparse=True; take the layer's output (penalized_loss)")
    refuse_what_derives_once(used)
    rows = [(g if form == "sample" else g[None]).flatten(1) for g in used]  # (B, ...) or (1, ...)
    gradient = torch.cat([wide(r) for r in rows], dim=1)
    if kind == "square":
        return 0.5 * gradient.square().sum(dim=1).mean()  # eq. (1)
    return torch.linalg.vector_norm(gradient, dim=1).mean()  # eq. (2)


class GradientPenalty:
    """`penalized_loss` on the model's embedding layer: `GradientPenalty(model).loss(loss_fn).backward()`.

    layer: "embeddings" (`get_input_embeddings()`, or the only nn.Embedding there is), a module's dotted name, or the
    module.
    """

    def __init__(
        self,
        model: nn.Module,
        layer: str | nn.Module = "embeddings",
        epsilon: float = 1.0,
        kind: str = "square",
        form: str = "batch",
    ) -> None:
        check_epsilon(epsilon, "GradientPenalty")
        self.layer, self.epsilon, self.kind, self.form = find_layer(model, layer), epsilon, kind, form

    def loss(self, loss_fn: Callable[[], Tensor]) -> Tensor:
        """The loss with the penalty and its graph, as `penalized_loss`."""
        return penalized_loss(loss_fn, self.layer, self.epsilon, self.kind, self.form)


def check_loss(loss: Tensor, inputs: list[Tensor], form: str) -> None:
    if not isinstance(loss, Tensor) or not loss.requires_grad:
        got = "a detached one (is it computed under no_grad?)" if isinstance(loss, Tensor) else type(loss).__name__
        raise ValueError(f"the gradient penalty needs a loss with a graph, got {got}")
    if form == "batch" and loss.ndim:
        raise ValueError(
            f"form='batch' needs a scalar loss, the mean over the batch, got shape {tuple(loss.shape)}; call .mean(), "
            "or say form='sample' for one penalty an example"
        )
    if form == "sample" and (loss.ndim != 1 or any(not t.ndim or len(t) != len(loss) for t in inputs)):
        raise ValueError(
            f"form='sample' needs one loss for each example, (B,), and x (B, ...); got loss {tuple(loss.shape)} and x "
            f"{[tuple(t.shape) for t in inputs]}; compute the loss with reduction='none' and add up each example's "
            "tokens, or say form='batch'"
        )


def refuse_what_derives_once(grads: Sequence[Tensor]) -> None:
    """An error now, by name, where backward() would fail later, or the penalty would train nothing."""
    if not any(g.requires_grad for g in grads):
        raise ValueError(
            "the gradient at x is a constant: no parameter moves it, so the penalty would train nothing (or a custom "
            "function marked once_differentiable stands right under the loss)"
        )
    stack = [g.grad_fn for g in grads if g.grad_fn is not None]
    seen, names = set(stack), set()
    while stack:
        node = stack.pop()
        names.add(node.name())
        for following, _ in node.next_functions:
            if following is not None and following not in seen:
                seen.add(following)
                stack.append(following)
    if names.intersection(ONCE):
        words = ("Attention", "Cudnn", "Miopen", "Flash", "Fused", "Compiled")
        suspects = sorted(n for n in names if any(word in n for word in words)) or ["a custom function"]
        raise RuntimeError(
            "the gradient penalty differentiates the gradient, and a part of the model has no second derivative (most "
            f"likely {', '.join(suspects)}); use its plain form: attention inside sdpa_kernel(SDPBackend.MATH) or "
            "attn_implementation='eager', recurrent layers under torch.backends.cudnn.flags(enabled=False), the model "
            "not compiled (backend='eager' is fine)"
        )
