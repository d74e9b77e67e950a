"""T5: padding, causality, the scale of the logits and bert4keras' cross bias. Numbers: test_model_oracles.py."""

import pytest
import torch

from danlu.text.config import TransformerConfig
from danlu.text.transformer import build_transformer

SIZES = {"vocab_size": 30, "hidden_size": 16, "num_layers": 2, "num_heads": 2, "intermediate_size": 20}
IDS = torch.tensor([[3, 4, 5, 6, 7], [8, 9, 10, 0, 0]])
TARGET = torch.tensor([[0, 4, 5, 6], [0, 9, 10, 0]])  # T5 starts with id 0


def made(family="t5.1.0", **options):
    torch.manual_seed(0)
    model = build_transformer(TransformerConfig.of(family, **{**SIZES, **options})).double().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return model


@pytest.mark.parametrize("family", ["t5.1.0", "t5.1.1", "mt5.1.1"])
@pytest.mark.parametrize("compat", ["upstream", "bert4keras"])
def test_padding_changes_nothing(family, compat):
    model = made(family, compat=compat)
    with torch.no_grad():
        packed, padded = model(IDS, TARGET), model(IDS, TARGET, pack=False)
        alone = model(IDS[1:, :3], TARGET[1:, :3])
    torch.testing.assert_close(packed.logits, padded.logits)
    torch.testing.assert_close(packed.logits[1:, :3], alone.logits)
    torch.testing.assert_close(packed.encoder_hidden_states[1:, :3], alone.encoder_hidden_states)


def test_the_decoder_does_not_look_ahead():
    model, other = made(), TARGET.clone()
    other[0, 2:] = 20
    torch.testing.assert_close(model(IDS, TARGET).logits[0, :2], model(IDS, other).logits[0, :2])


def test_fewer_decoder_layers():
    assert len(made(num_decoder_layers=1).decoder.layers) == 1


def test_scale_and_cross_bias_are_switches():
    tied, untied = made(), made("t5.1.1")
    hidden = torch.randn(2, 16, dtype=torch.float64)
    torch.testing.assert_close(tied.score(hidden), hidden @ tied.embeddings.token.weight.T / 4)  # 16 ** -0.5
    torch.testing.assert_close(untied.score(hidden), hidden @ untied.lm_head.weight.T)
    plain, biased = made(cross_position_bias=False), made(cross_position_bias=True)
    assert not torch.allclose(plain(IDS, TARGET).logits, biased(IDS, TARGET).logits)
    with torch.no_grad():
        for model in (plain, biased):
            model.decoder.position_bias.weight.zero_()
    torch.testing.assert_close(plain(IDS, TARGET).logits, biased(IDS, TARGET).logits)


def test_messages():
    model = made()
    with pytest.raises(ValueError, match="decode needs the encoder's output or a cache"):
        model.decode(TARGET, None)
    with pytest.raises(ValueError, match="ids holds 31"):
        model(torch.tensor([[31]]), TARGET[:1])
    with pytest.raises(ValueError, match=r"mask has shape \(1, 5\)"):
        model(IDS, TARGET, mask=torch.ones(1, 5, dtype=torch.bool))
