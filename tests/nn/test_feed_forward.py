"""FeedForward: eqs. (1) and (2) by hand."""

import torch
import torch.nn.functional as F

from danlu.nn import FeedForward


def test_plain_and_gated_by_hand():
    x = torch.tensor([[1.0, -2.0]], dtype=torch.float64)
    plain, gated = FeedForward(2, 3, "relu").double(), FeedForward(2, 3, "gelu_tanh", gated=True, bias=False).double()
    want = F.relu(x @ plain.input.weight.T + plain.input.bias) @ plain.output.weight.T + plain.output.bias
    torch.testing.assert_close(plain(x), want)
    gate = F.gelu(x @ gated.gate.weight.T, approximate="tanh")
    torch.testing.assert_close(gated(x), (gate * (x @ gated.input.weight.T)) @ gated.output.weight.T)


def test_names_are_those_of_the_checkpoints():
    assert set(FeedForward(2, 3, gated=True, bias=False).state_dict()) == {
        "input.weight",
        "gate.weight",
        "output.weight",
    }
