r"""A copy of a model that only computes outputs, as fast as the processor allows.

Weights are laid out once for the kernels that read them (`danlu.nn.packed_linear`), query, key and value become one
product, activations are applied while results are still in cache, and with bfloat16 everything but sums and norms runs
in it. The copy has the calls of the model it was made from, batches are packed and caches work as before; it has no
gradients.

Source: none; the arithmetic is that of the model.
Shapes: as the model's.
"""

from __future__ import annotations

import copy
from typing import Any, TypeVar, cast

import torch
from torch import nn

from danlu.math.activations import activation as activation_of
from danlu.nn.attention import MultiHeadAttention
from danlu.nn.decode_layers import DecodeLayer, DecodeLayers
from danlu.nn.feed_forward import FeedForward
from danlu.nn.gated_attention_unit import GatedAttentionUnit
from danlu.nn.packed_linear import PackedLinear
from danlu.text.blocks import Block
from danlu.text.config import TransformerConfig
from danlu.text.encoder_decoder import EncoderDecoder
from danlu.text.single_stack import Transformer

__all__ = ["for_inference"]

Model = TypeVar("Model", Transformer, EncoderDecoder)


def for_inference(model: Model, dtype: torch.dtype = torch.float32) -> Model:
    """A copy of a model for inference on the CPU, in evaluation mode.

    Args:
        model: what `build_transformer` or a loader returned; it is left as it is.
        dtype: of weights and hidden states, float32 or bfloat16 (fast on processors with AMX or AVX512-BF16).

    Returns:
        A model of the same class without gradients.

    Raises:
        ValueError: another dtype, or a model that is such a copy already.

    >>> from danlu.text.config import TransformerConfig
    >>> sizes = {"vocab_size": 9, "hidden_size": 8, "num_layers": 1, "num_heads": 2, "intermediate_size": 8}
    >>> config = TransformerConfig.of("bert", **sizes)
    >>> for_inference(Transformer(config))(torch.tensor([[1, 2]])).hidden_states.shape
    torch.Size([1, 2, 8])
    """
    if dtype not in (torch.float32, torch.bfloat16):
        raise ValueError(f"for_inference keeps weights in float32 or bfloat16, got {dtype}")
    if model.inference_only:
        raise ValueError("this model is a copy for inference already; call for_inference on the model it was made from")
    source = dict(model.named_modules())
    replaced = {id(module) for name, module in source.items() if _replaced(name, module, source)}
    fast = (
        copy.deepcopy(model, dict.fromkeys(replaced)).to(dtype).eval().requires_grad_(False)
    )  # without the weights replaced below
    fast.inference_only = True
    activation = model.config.activation
    for name, module in source.items():
        part: Any = None if id(module) in replaced else fast.get_submodule(name)
        if isinstance(module, MultiHeadAttention):
            _set(part, "output", PackedLinear(module.output, dtype))
            if ".cross_attention" in name:
                for kind in ("query", "key", "value"):
                    _set(part, kind, PackedLinear(getattr(module, kind), dtype))
            else:
                _set(part, "joined", PackedLinear.joined([module.query, module.key, module.value], dtype))
        elif isinstance(module, FeedForward):
            gated = module.gate is not None
            _set(part, "input", PackedLinear(module.input, dtype, None if gated else activation))
            if module.gate is not None:
                _set(part, "gate", PackedLinear(module.gate, dtype, activation))
            _set(part, "output", PackedLinear(module.output, dtype))
            part.activation = activation_of(None)
        elif isinstance(module, GatedAttentionUnit):
            _set(part, "input", PackedLinear(module.input, dtype, activation))
            _set(part, "output", PackedLinear(module.output, dtype))
            part.activation = activation_of(None)
    if isinstance(model, Transformer):
        if "mlm" in model.heads:
            bias = model.mlm.bias if model.config.traits.head == "mlm" else None
            fast.vocabulary = PackedLinear(model.embeddings.token.weight, dtype, bias=bias)
    elif model.lm_head is not None:
        fast.lm_head = PackedLinear(cast(nn.Linear, model.lm_head), dtype)
    else:
        fast.vocabulary = PackedLinear(model.embeddings.token.weight, dtype)
    if isinstance(fast, Transformer) and _in_one_call(fast.config):
        fast.decode_layers = _decode_layers(fast)
    return fast


def _in_one_call(config: TransformerConfig) -> bool:
    """Whether the kernel of decoding knows this kind of layer (`danlu.nn.decode_layers`)."""
    family = config.traits
    return (
        config.application != "encoder" and family.block in ("pre", "post") and family.norm == "layer"
        and family.positions == "learned" and not family.gated
        and config.condition_size is None and not config.residual_attention_scores and config.attention == "softmax"
    )  # fmt: skip


def _decode_layers(fast: Transformer) -> DecodeLayers:
    config, first = fast.config, cast(Block, fast.layers[0])
    layers = []
    for i in range(fast.num_layers):
        block: Any = fast.layers[0 if config.traits.share_layers else i]
        norms = [(norm.weight, norm.bias) for norm in (block.attention_norm, block.feed_forward_norm)]
        layers.append(
            DecodeLayer(
                block.attention.joined,
                block.attention.output,
                block.feed_forward.input,
                block.feed_forward.output,
                *norms,
            )
        )
    return DecodeLayers(
        layers, config.num_heads, config.key_dim, config.norm_eps, config.activation, config.traits.block == "post",
        cast(MultiHeadAttention, first.attention).scale,
    )  # fmt: skip


def _replaced(name: str, module: nn.Module, source: dict[str, nn.Module]) -> bool:
    """Whether a linear layer gives way to a packed one."""
    if not isinstance(module, nn.Linear):
        return False
    parent = source[name.rpartition(".")[0]]
    return isinstance(parent, MultiHeadAttention | FeedForward | GatedAttentionUnit) or name == "lm_head"


def _set(part: nn.Module | None, name: str, module: nn.Module) -> None:
    assert part is not None
    part._modules.pop(name, None)
    setattr(part, name, module)
