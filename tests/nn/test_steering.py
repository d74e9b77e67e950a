"""Steering: transformers' models unchanged, steered, baked; torch's encoder; threads, nesting, guidance, messages."""

import copy
import pickle
import threading

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from danlu.nn.conditional_norm import Norm
from danlu.nn.steering import add_condition, bake, condition, guided_logits

IDS = torch.tensor([[2, 5, 6, 3, 0], [2, 7, 3, 0, 0], [2, 9, 8, 4, 3]])


def seeded(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def train(parameters, std=0.3):
    """Stands for training: the new parameters leave zero."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in parameters:
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * std)


@pytest.fixture
def bert():
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    sizes = {"hidden_size": 24, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 40}
    model = transformers.BertModel(transformers.BertConfig(vocab_size=12, **sizes)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


@pytest.fixture
def t5():
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.T5Config(vocab_size=12, d_model=24, d_kv=6, d_ff=40, num_layers=2, num_heads=4)
    return transformers.T5EncoderModel(config).eval()


def hidden(model, ids=IDS):
    return model(input_ids=ids, attention_mask=(ids != 0).long()).last_hidden_state


# models of transformers


@pytest.mark.parametrize("size", [None, 5])
def test_bert_is_unchanged_bit_for_bit_then_follows_then_bakes_back(bert, size):
    before, names = hidden(bert), list(bert.state_dict())
    new = add_condition(bert, 8, hidden=size, activation="tanh")
    norms = 2 * 3 + 1  # two in each layer and one over the embeddings
    assert sum(p.numel() for p in new) == norms * (2 * (size or 8) * 24 + (8 * size if size else 0))
    assert {id(p) for p in new} <= {id(p) for p in bert.parameters()}
    c = seeded(3, 8)
    with condition(100 * c):
        assert torch.equal(hidden(bert), before)

    train(new)
    with condition(c):
        steered = hidden(bert)
    assert (steered - before).abs().amax(dim=(1, 2)).min() > 0.1
    for i in range(3):
        with condition(c[i : i + 1]):
            torch.testing.assert_close(hidden(bert, IDS[i : i + 1]), steered[i : i + 1], rtol=0, atol=2e-6)
        frozen = bake(copy.deepcopy(bert), c[i])
        torch.testing.assert_close(hidden(frozen, IDS[i : i + 1]), steered[i : i + 1], rtol=0, atol=2e-6)
        assert list(frozen.state_dict()) == names
        assert not any(isinstance(module, Norm) for module in frozen.modules())
    with condition(c), torch.no_grad():
        assert torch.equal(hidden(bert), steered)  # the copies took nothing from it


def test_baked_bert_is_a_stock_folder(bert, tmp_path):
    transformers = pytest.importorskip("transformers")
    train(add_condition(bert, 8))
    bake(bert, seeded(1, 8)).save_pretrained(tmp_path)
    again = transformers.AutoModel.from_pretrained(tmp_path).eval()
    assert torch.equal(hidden(again), hidden(bert))


def test_t5_follows_without_a_shift(t5):
    before = hidden(t5)
    kinds = {type(module) for module in t5.modules()}
    new = add_condition(t5, 8)
    assert len(new) == 2 * 2 + 1 and {tuple(p.shape) for p in new} == {(24, 8)}
    c = seeded(3, 8)
    with condition(c):
        assert torch.equal(hidden(t5), before)
    train(new)
    with condition(c):
        steered = hidden(t5)
    assert (steered - before).abs().max() > 0.01
    torch.testing.assert_close(hidden(bake(t5, c[1]), IDS[1:2]), steered[1:2], rtol=0, atol=1e-5)
    assert {type(module) for module in t5.modules()} == kinds


def test_only_the_new_parameters_need_training(bert):
    bert.requires_grad_(False)
    new = add_condition(bert, 8)
    table = nn.Embedding(2, 8)
    optimizer = torch.optim.SGD([*new, *table.parameters()], lr=1.0)
    norms, start = {n: p.clone() for n, p in bert.named_parameters() if "cond_" not in n}, table.weight.detach().clone()
    for step in range(2):
        optimizer.zero_grad()
        with condition(table(torch.tensor([0, 1, 1]))):
            hidden(bert)[:, 0, 0].sum().backward()
        assert (table.weight.grad.abs().max() > 0) == (step > 0)  # a condition moves once the matrices have
        optimizer.step()
    assert not torch.equal(table.weight, start)
    assert all(torch.equal(value, norms[name]) for name, value in bert.named_parameters() if name in norms)


# torch's own modules


def test_fused_encoder_does_not_pass_the_condition_by():
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, dropout=0.0)
    model = nn.TransformerEncoder(layer, 2, norm=nn.LayerNorm(8)).eval()
    x, keep = seeded(3, 5, 8), IDS != 0
    with torch.no_grad():
        before = model(x, src_key_padding_mask=~keep)
    new = add_condition(model, 4)
    assert len(new) == 2 * (2 * 2 + 1)
    c = seeded(3, 4)
    with torch.no_grad(), condition(c):
        torch.testing.assert_close(model(x, src_key_padding_mask=~keep)[keep], before[keep], rtol=0, atol=1e-6)
    train(new)
    with condition(c):
        expected = model(x, src_key_padding_mask=~keep)
        with torch.no_grad():
            got = model(x, src_key_padding_mask=~keep)
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-6)
    assert (got - before)[keep].abs().max() > 0.1


@pytest.mark.parametrize(
    "norm",
    [
        nn.LayerNorm(6, eps=0.1, bias=False),
        nn.LayerNorm(6, elementwise_affine=False),
        nn.RMSNorm(6),
        nn.RMSNorm(6, eps=0.1, elementwise_affine=False),
        Norm(6, eps=0.1),
        Norm(6, kind="rms"),
        Norm(6, kind="plain_rms"),
    ],
    ids=str,
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_every_kind_of_norm(norm, dtype):
    norm = copy.deepcopy(norm).to(dtype)
    if getattr(norm, "weight", None) is not None:
        nn.init.normal_(norm.weight)
    model, x, c = nn.Sequential(nn.Linear(6, 6), norm).to(dtype), seeded(2, 3, 6).to(dtype), seeded(2, 4).to(dtype)
    before, kept = model(x), list(model.parameters())
    new = add_condition(model, 4)
    assert len(new) == (1 if getattr(norm, "bias", None) is None else 2)
    with condition(c):
        assert torch.equal(model(x), before)
    assert [id(p) for p in kept] == [id(p) for n, p in model.named_parameters() if "cond_" not in n]
    assert {p.dtype for p in model.parameters()} == {dtype}
    train(new)
    with condition(c):
        steered = model(x)
    tolerance = 0.05 if dtype == torch.bfloat16 else 1e-6
    assert (steered - before).abs().max() > 10 * tolerance
    torch.testing.assert_close(bake(model, c[1])(x)[1], steered[1], rtol=tolerance, atol=tolerance)
    assert "cond_" not in "".join(model.state_dict())
    if len(kept) > 2:
        assert type(model[1]) is type(norm)


def test_norms_of_danlu_made_with_a_condition_bake_too():
    for kind in ("layer", "rms", "plain_rms"):
        model = nn.Sequential(Norm(6, kind=kind, condition_dim=4))
        train(list(model.parameters()))
        x, c = seeded(1, 3, 6), seeded(1, 4)
        expected = model[0](x, c)
        torch.testing.assert_close(bake(model, c)(x), expected, rtol=0, atol=1e-6)
        assert model[0].kind == ("layer" if kind == "layer" else "rms") and model[0].condition_dim is None


def test_a_shared_norm_stays_shared():
    norm = nn.LayerNorm(4)
    model = nn.ModuleDict({"a": norm, "b": nn.Sequential(norm), "c": norm})
    assert len(add_condition(model, 2)) == 2
    assert isinstance(model["a"], Norm) and model["a"] is model["b"][0] is model["c"]
    bake(model, torch.ones(2))
    assert model["a"] is norm and model["b"][0] is norm and model["c"] is norm


def test_the_bottleneck_has_the_activation_that_was_asked_for():
    model, x = nn.Sequential(nn.LayerNorm(4)), seeded(2, 4)
    before = model(x)
    train(add_condition(model, 2, hidden=3, activation="relu"))
    with torch.no_grad():
        model[0].cond_hidden.weight.fill_(-1.0)
    with condition(torch.ones(2, 2)):
        assert torch.equal(model(x), before)  # nothing passes
    with condition(-torch.ones(2, 2)):
        assert not torch.allclose(model(x), before)


def test_modes_devices_and_copies():
    model = nn.Sequential(nn.LayerNorm(4), nn.Dropout()).eval()
    model[0].weight.requires_grad_(False)
    new = add_condition(model, 2)
    assert not model[0].training and not model[0].weight.requires_grad and all(p.requires_grad for p in new)
    train(new)
    copied = pickle.loads(pickle.dumps(copy.deepcopy(model)))
    x, c = seeded(3, 4), seeded(3, 2)
    with condition(c):
        assert torch.equal(copied(x), model(x))
    bake(model, c[0])
    assert not model[0].training and not model[0].weight.requires_grad and model[0].bias.requires_grad
    with condition(c):
        assert not torch.equal(copied(x), model(x))
    assert bake(copied.train(), c[0])[0].training  # the mode of the model, not that of the day it got its condition


# the block


def test_blocks_nest_and_close_whatever_happens():
    model, x = nn.Sequential(nn.LayerNorm(4)), seeded(2, 4)
    train(add_condition(model, 3))
    a, b = seeded(2, 3), seeded(2, 3, seed=1)
    of_a, of_b = model[0](x, a), model[0](x, b)
    assert not torch.equal(of_a, of_b)
    with condition(a):
        assert torch.equal(model(x), of_a)
        with pytest.raises(ZeroDivisionError), condition(b):
            assert torch.equal(model(x), of_b)
            raise ZeroDivisionError
        assert torch.equal(model(x), of_a)
        assert torch.equal(model[0](x, b), of_b)  # what is given by hand comes first
        assert torch.equal(model[0](x, condition=b), of_b)
        assert torch.equal(model[0](x, None), of_a)
        assert torch.equal(model[0](x=x), of_a)
        assert torch.equal(model[0](x[[1, 1, 0]], None, torch.tensor([1, 1, 0])), of_a[[1, 1, 0]])
    with pytest.raises(ValueError, match=r"none was given; .*inside `with condition\(c\):` if add_condition"):
        model(x)


def test_threads_have_their_own():
    model, x = nn.Sequential(nn.LayerNorm(4)), seeded(2, 4)
    train(add_condition(model, 3))
    values = [seeded(2, 3, seed=seed) for seed in range(4)]
    expected = [model[0](x, value) for value in values]
    inside, got, errors = threading.Barrier(5), [None] * 4, []

    def work(i):
        with condition(values[i]):
            inside.wait(10)  # everybody is in a block of their own now
            got[i] = model(x)
            inside.wait(10)

    def outside():
        inside.wait(10)
        try:
            model(x)
        except ValueError as error:
            errors.append(error)
        inside.wait(10)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)] + [threading.Thread(target=outside)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(errors) == 1
    assert all(torch.equal(a, b) for a, b in zip(got, expected, strict=True))


def test_checkpointing_wants_backward_inside_the_block():
    model, x = nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4)), seeded(2, 4)
    new = add_condition(model, 3)
    for inside in (True, False):
        with condition(seeded(2, 3)):
            loss = checkpoint(model, x, use_reentrant=False)[:, 0].sum()
            if inside:
                loss.backward()
        if not inside:
            with pytest.raises(ValueError, match="backward too, where activation checkpointing"):
                loss.backward()
    assert new[0].grad.abs().max() > 0


def test_beams_do_not_borrow_conditions(bert):
    add_condition(bert, 8)
    c = seeded(3, 8)
    with condition(c), pytest.raises(ValueError, match=r"\(3, 8\) does not fit x \(6, 5, 24\).*repeat_interleave"):
        hidden(bert, IDS.repeat_interleave(2, dim=0))
    with condition(c.repeat_interleave(2, dim=0)):
        hidden(bert, IDS.repeat_interleave(2, dim=0))


# guidance


def test_guidance_equals_the_formula():
    c, u = seeded(3, 5).double(), seeded(3, 5, seed=1).double()
    for weight in (0.0, 0.5, 1.0, 3.0):
        torch.testing.assert_close(guided_logits(c, u, weight), u + weight * (c - u))
    assert torch.equal(guided_logits(c, u, 0.0), u) and torch.equal(guided_logits(c, u, 1.0), c)


def test_guidance_multiplies_probabilities():  # softmax(l) is p_c^w p_u^(1 - w), normalized
    c, u = seeded(2, 4), seeded(2, 4, seed=1)
    product = c.softmax(-1) ** 2.5 * u.softmax(-1) ** -1.5
    torch.testing.assert_close(guided_logits(c, u, 2.5).softmax(-1), product / product.sum(-1, keepdim=True))


def test_forbidden_tokens_stay_forbidden():
    inf = torch.inf
    got = guided_logits(torch.tensor([-inf, -inf, 1.0, 1.0]), torch.tensor([-inf, 2.0, -inf, 3.0]), 2.0)
    assert got.tolist() == [-inf, -inf, -inf, -1.0]
    c = torch.tensor([-inf, 1.0], requires_grad=True)
    guided_logits(c, torch.tensor([0.0, 0.0]), 2.0)[1].backward()
    assert c.grad.tolist() == [0.0, 2.0]


def test_guidance_gradcheck():
    values = [seeded(2, 3, seed=seed).double().requires_grad_() for seed in (0, 1)]
    assert torch.autograd.gradcheck(lambda c, u: guided_logits(c, u, 1.7), values)


# messages


class Centred(nn.LayerNorm):
    def forward(self, x):
        return x - x.mean(dim=-1, keepdim=True)


class Careful(nn.LayerNorm):
    def forward(self, x):
        return super().forward(x.float()).to(x.dtype)


def test_a_class_of_ones_own_is_taken_at_its_outputs():
    model = nn.Sequential(Careful(4))
    assert len(add_condition(model, 2)) == 2
    assert type(bake(model, torch.ones(2))[0]) is Careful
    with pytest.raises(ValueError, match=r"^0 is a Centred that computes something else than layer normalization"):
        add_condition(nn.Sequential(Centred(4)), 2)


def test_nothing_is_replaced_when_one_norm_is_refused():
    model = nn.Sequential(nn.LayerNorm(4), Centred(4))
    with pytest.raises(ValueError, match="1 is a Centred"):
        add_condition(model, 2)
    assert type(model[0]) is nn.LayerNorm


def test_messages():
    with pytest.raises(ValueError, match=r"norms inside a model; Linear has none that it knows"):
        add_condition(nn.Linear(2, 2), 3)
    with pytest.raises(ValueError, match=r"LayerNorm is one itself, wrap it in nn.Sequential"):
        add_condition(nn.LayerNorm(2), 3)
    with pytest.raises(ValueError, match=r"^0 normalizes over 2 axes \(3, 4\)"):
        add_condition(nn.Sequential(nn.LayerNorm((3, 4))), 2)
    with pytest.raises(ValueError, match=r"must be at least 1 .*got 4, 0 and None"):
        add_condition(nn.Sequential(nn.LayerNorm(4)), 0)
    model = nn.Sequential(nn.LayerNorm(4))
    with pytest.raises(ValueError, match=r"no norm of Sequential follows a condition"):
        bake(model, torch.ones(2))
    add_condition(model, 2)
    with pytest.raises(ValueError, match=r"^0 follows a condition already; bake\(model, c\) first"):
        add_condition(model, 2)
    with pytest.raises(ValueError, match=r"bake freezes one condition \(size,\), got \(3, 2\)"):
        bake(model, torch.ones(3, 2))
    with pytest.raises(ValueError, match=r"takes conditions of 2 numbers; got condition \(3,\)"):
        bake(model, torch.ones(3))
    for value, given in ((torch.ones(2), r"shape \(2,\)"), ([[1.0]], "list")):
        with pytest.raises(ValueError, match=rf"tensor \(batch, size\), got {given}; .*c\[None\]"), condition(value):
            pass
    with pytest.raises(ValueError, match=r"two tensors of one shape, got \(2, 3\) and \(3,\)"):
        guided_logits(torch.zeros(2, 3), torch.zeros(3), 1.0)
