"""Copies for inference: the same outputs in every family, the model untouched, no gradients."""

import pytest
import torch

from danlu.text.beam_search import beam_search
from danlu.text.cached_steps import TransformerSteps
from danlu.text.config import FAMILIES, TransformerConfig
from danlu.text.decoding import greedy
from danlu.text.inference import for_inference
from danlu.text.transformer import build_transformer

SIZES = {"vocab_size": 30, "hidden_size": 16, "num_layers": 2, "num_heads": 2, "intermediate_size": 20}
IDS = torch.tensor([[3, 4, 5, 6, 7], [8, 9, 10, 0, 0], [11, 12, 0, 0, 0]])
KEEP = IDS != 0


def made(family, **options):
    torch.manual_seed(0)
    heads = () if FAMILIES[family].encoder_decoder else ("nsp", "mlm", "discriminator")
    return build_transformer(TransformerConfig.of(family, **{**SIZES, **options}), heads)


def run(model):
    with torch.no_grad():
        out = model(IDS, IDS) if hasattr(model, "decoder") else model(IDS)
    return [part[KEEP] for part in (out.hidden_states, out.logits)]


@pytest.mark.parametrize("family", FAMILIES)
def test_outputs_stay(family):
    model = made(family).eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    exact, fast, half = run(model), run(for_inference(model)), run(for_inference(model, torch.bfloat16))
    for a, b, c in zip(exact, fast, half, strict=True):
        torch.testing.assert_close(b, a, rtol=1e-5, atol=1e-6)
        assert c.dtype == torch.bfloat16
        assert (c.float() - a).abs().max() < 0.04 * a.abs().max()
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name])


def test_conditions_and_positions_still_count():
    model = made("bert", condition_size=3).eval()
    for norm in (block.attention_norm for block in model.layers):
        torch.nn.init.normal_(norm.cond_gamma.weight)
    condition = torch.randn(3, 3)
    fast = for_inference(model)
    with torch.no_grad():
        torch.testing.assert_close(
            fast(IDS, condition=condition).hidden_states[KEEP], model(IDS, condition=condition).hidden_states[KEEP],
            rtol=1e-5, atol=1e-6,
        )  # fmt: skip


def test_it_is_for_inference_only():
    model = made("bert").train()
    fast = for_inference(model)
    assert model.training and not fast.training
    assert not any(parameter.requires_grad for parameter in fast.parameters())
    assert not fast.train().training  # a surrounding module's train() brings no dropout
    with pytest.raises(ValueError, match="a copy for inference already"):
        for_inference(fast)
    with pytest.raises(ValueError, match=r"float32 or bfloat16, got torch\.float16"):
        for_inference(model, torch.float16)


@pytest.mark.parametrize("options", [{"residual_attention_scores": True}, {"condition_size": 3}])
def test_what_the_kernel_does_not_know_is_left_to_the_layers(options):
    model = made("bert", application="lm", **options).eval()
    fast = for_inference(model)
    assert fast.decode_layers is None
    condition = torch.randn(1, 3) if "condition_size" in options else None
    ours, theirs = (TransformerSteps(one, [[3, 4]], 3, condition=condition) for one in (fast, model))
    for tokens in (None, torch.tensor([5])):
        torch.testing.assert_close(ours.step(tokens), theirs.step(tokens), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("family", ["gpt2", "gpt", "bert", "albert", "roformer", "gau_alpha", "gpt2_ml", "nezha"])
def test_writing_gives_the_same_tokens(family):
    model = made(family, application="lm", max_positions=20, norm_eps=0.05).eval()
    with torch.no_grad():  # far from its first weights, so that choices are clear
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    prompts = [[3, 4, 5], [6, 7, 8]] if family in ("nezha", "gau_alpha") else [[3, 4, 5], [6]]
    fast = for_inference(model)
    assert (fast.decode_layers is not None) == (family in ("gpt2", "gpt", "bert", "albert"))

    def run(decoder, one, **options):
        return decoder(
            TransformerSteps(one, prompts, max_new_tokens=8), end_id=29, max_new_tokens=8, **options
        ).answers()

    ours, theirs = (TransformerSteps(one, prompts, 4) for one in (fast, model))
    for tokens in (None, torch.tensor([9, 10]), torch.tensor([11, 12])):
        expected = theirs.step(tokens)
        torch.testing.assert_close(ours.step(tokens), expected, rtol=0, atol=1e-5 * expected.abs().max().item())
    assert run(greedy, fast) == run(greedy, model)
    assert run(beam_search, fast, num_beams=3) == run(beam_search, model, num_beams=3)
