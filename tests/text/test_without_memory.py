"""Models without memory: shapes and flags as usual, nothing drawn, nothing brought in, the world as before."""

import subprocess
import sys

import pytest
import torch
from torch import nn

from danlu.text.without_memory import without_memory


def build():
    layers = nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4), nn.Embedding(5, 4), nn.Linear(4, 2, bias=False))
    nn.init.trunc_normal_(layers[3].weight)
    layers[0].bias.requires_grad_(False)
    return layers


def test_shapes_names_and_flags_are_those_of_a_usual_model():
    with without_memory():
        empty = build()
    usual = dict(build().named_parameters())
    assert dict(empty.named_parameters()).keys() == usual.keys()
    for name, parameter in empty.named_parameters():
        assert parameter.is_meta and parameter.shape == usual[name].shape and parameter.dtype == usual[name].dtype
        assert parameter.requires_grad == usual[name].requires_grad


def test_the_random_generator_is_not_touched():
    state = torch.get_rng_state()
    with without_memory():
        build()
    assert torch.equal(torch.get_rng_state(), state)


def test_afterwards_everything_is_as_before():
    with pytest.raises(KeyError), without_memory():
        raise KeyError
    layer = nn.Linear(2, 2)
    assert not layer.weight.is_meta
    with torch.no_grad():
        assert layer.weight.zero_().sum() == 0


def test_other_tensors_may_be_written_inside():
    with without_memory():
        tensor = torch.zeros(2, device="cpu")
        tensor.add_(1)
    assert tensor.tolist() == [1.0, 1.0]


def test_torch_s_compiler_is_not_brought_in():
    program = (
        "import sys, torch\n"
        "from danlu.text.config import TransformerConfig\n"
        "from danlu.text.transformer import build_transformer\n"
        "from danlu.text.without_memory import without_memory\n"
        "sizes = dict(vocab_size=9, hidden_size=8, num_layers=1, num_heads=2, intermediate_size=8)\n"
        "with without_memory():\n"
        "    for family in ('bert', 'roformer_v2', 'gau_alpha', 'gpt2_ml', 'electra', 't5.1.1'):\n"
        "        build_transformer(TransformerConfig.of(family, **sizes))\n"
        "assert not [name for name in sys.modules if name.startswith('torch._dynamo')]\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
