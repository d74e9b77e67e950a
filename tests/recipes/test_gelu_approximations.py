"""Swapping GELU in a model: every layer and the head, put back on any exit, refused where there is none."""

import pytest
import torch
import torch.nn.functional as F

from danlu.math import activation
from danlu.recipes.gelu_approximations import forms, sentence_folder, swapped
from danlu.text import TransformerConfig
from danlu.text.transformer import build_transformer


def small(**options):
    torch.manual_seed(0)
    return build_transformer(TransformerConfig("bert", 9, 4, 2, 2, 8, **options), ["mlm"]).eval()


def test_a_swapped_model_is_the_model_of_that_form():
    model, ids = small(), torch.tensor([[1, 2, 3]])
    before = model(ids).logits
    for form in ("tanh", "sigmoid"):
        other = small(activation=f"gelu_{form}")
        other.load_state_dict(model.state_dict())
        with swapped(model, activation(f"gelu_{form}")):
            assert torch.equal(model(ids).logits, other(ids).logits)
            assert not torch.equal(model(ids).logits, before)
    with pytest.raises(KeyError), swapped(model, torch.relu):
        raise KeyError
    assert torch.equal(model(ids).logits, before)


def test_a_model_without_gelu_is_refused():
    with pytest.raises(ValueError, match="no layer with the erf form"), swapped(small(activation="relu"), F.gelu):
        pass


def test_forms_are_near_and_the_fitted_ones_nearer():
    x = torch.linspace(-6, 6, 1_201, dtype=torch.float64)
    far = {name: float((form(x) - F.gelu(x)).abs().max()) for name, form in forms().items()}
    assert far["erf"] == 0
    assert far["tanh of three terms"] < far["tanh fitted to GELU"] < far["tanh"] < 5e-4
    assert far["sigmoid fitted to GELU"] < far["sigmoid"] < 2.1e-2


def test_a_folder_is_taken_as_it_is(tmp_path):
    assert sentence_folder(str(tmp_path)) == tmp_path
