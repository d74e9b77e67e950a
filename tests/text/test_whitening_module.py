"""WhiteningModule: equals the transformer, large means, half precision, in a SentenceTransformer, its files."""

import json

import numpy as np
import pytest
import torch
from torch import nn

from danlu.data.errors import InputError
from danlu.text import Whitening, WhiteningModule
from danlu.text.builtin import builtin_folder

GENERATOR = np.random.default_rng(0)
X = GENERATOR.standard_normal((100, 6)) @ GENERATOR.standard_normal((6, 6)) + 5


def made(normalize: bool = False, dim: int = 4) -> tuple[Whitening, WhiteningModule]:
    w = Whitening(dim=dim, normalize=normalize).fit(X)
    return w, w.to_module()


@pytest.mark.parametrize("normalize", [False, True])
def test_equals_the_transformer(normalize):
    w, module = made(normalize)
    x = torch.from_numpy(X).float()
    np.testing.assert_allclose(module(x).numpy(), w.transform(X), atol=1e-5)
    features = {"sentence_embedding": x, "other": 1}
    out = module(features)
    assert out is features
    assert torch.equal(out["sentence_embedding"], module(x))
    assert module(x[0]).shape == (4,)
    assert module(x[:0]).shape == (0, 4)
    assert not list(module.parameters())


def test_large_means_and_half_precision():
    x = X * 0.01 + 300
    w = Whitening(products="float64").fit(x)
    module, linear = w.to_module(), w.to_linear()
    exact = torch.from_numpy(w.transform(x))
    given = torch.from_numpy(x).float()
    ours = (module(given) - torch.from_numpy(w.transform(given.double().numpy()))).abs().max()
    with torch.no_grad():
        folded = (linear(given) - torch.from_numpy(w.transform(given.double().numpy()))).abs().max()
    assert ours < 1e-4
    assert folded > 20 * ours
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(module(given), module(given))
        assert (module(given) - exact).abs().max() < 1e-1
    half = Whitening().fit(X).to_module()
    y = half(torch.from_numpy(X).half())
    assert y.dtype == torch.float16
    np.testing.assert_allclose(
        y.float().numpy(), Whitening().fit(X).transform(X.astype("float16").astype(float)), atol=5e-3
    )
    assert half(torch.from_numpy(X)).dtype == torch.float64


def test_in_a_loop_of_somebody_else():
    """Gradients pass through to the encoder below, and the map itself stays."""
    _, module = made()
    model = nn.Sequential(nn.Linear(6, 6), module)
    before = {name: part.clone() for name, part in module.state_dict().items()}
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    x = torch.from_numpy(X[:8]).float()
    first = last = 0.0
    for step in range(5):
        optimizer.zero_grad()
        loss = (torch.nn.functional.normalize(model(x), dim=-1)[:, 0] - 1).square().mean()
        loss.backward()
        optimizer.step()
        first, last = (loss.item() if step == 0 else first), loss.item()
    assert last < first
    assert all(torch.equal(part, before[name]) for name, part in module.state_dict().items())


def test_gradcheck():
    _, module = made(normalize=True)
    assert torch.autograd.gradcheck(module.double(), torch.from_numpy(X[:2]).requires_grad_())


@pytest.mark.slow  # the compiler takes seconds to load
def test_compiled():
    _, module = made(normalize=True)
    x = torch.from_numpy(X[:2]).float()
    compiled = torch.compile(module, backend="eager")
    torch.testing.assert_close(compiled(x), module(x))


def test_files(tmp_path):
    _, module = made(normalize=True)
    module.save(str(tmp_path), safe_serialization=True)
    assert json.loads((tmp_path / "config.json").read_text()) == {
        "in_features": 6,
        "out_features": 4,
        "normalize": True,
    }
    x = torch.from_numpy(X).float()
    assert torch.equal(WhiteningModule.load(str(tmp_path))(x), module(x))
    assert torch.equal(WhiteningModule.load(str(tmp_path.parent), subfolder=tmp_path.name)(x), module(x))
    (tmp_path / "config.json").write_text('{"in_features": 6, "out_features": 5}')
    with pytest.raises(InputError, match=r"holds no whitening that WhiteningModule\.save wrote"):
        WhiteningModule.load(str(tmp_path))
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(InputError, match="holds no whitening"):
        WhiteningModule.load(str(tmp_path))


def test_message():
    _, module = made()
    with pytest.raises(ValueError, match=r"takes vectors of 6 features, got \(2, 5\); it belongs behind the encoder"):
        module(torch.zeros(2, 5))


class Bag(nn.Module):
    """The first module of a SentenceTransformer, without a network: letters counted."""

    max_seq_length = None
    tokenizer = None
    modalities = ("text",)

    def tokenize(self, texts, **kwargs):
        rows = [[text.count(letter) + 5.0 for letter in "abcdef"] for text in texts]
        return {"sentence_embedding": torch.tensor(rows)}

    preprocess = tokenize

    def forward(self, features):
        return features

    def save(self, path, *args, **kwargs):
        pass

    @classmethod
    def load(cls, path):
        return cls()

    def get_embedding_dimension(self):
        return 6


@pytest.mark.slow  # importing sentence-transformers takes its time
def test_in_a_sentence_transformer(tmp_path):
    sentence_transformers = pytest.importorskip("sentence_transformers")
    from sentence_transformers.sentence_transformer.modules import Dense

    _, module = made(normalize=True)
    model = sentence_transformers.SentenceTransformer(modules=[Bag(), module], device="cpu")
    texts = ["abc", "aabbf", "fed", ""]
    vectors = model.encode(texts)
    expected = module(Bag().tokenize(texts)["sentence_embedding"])
    np.testing.assert_allclose(vectors, expected.numpy(), atol=1e-6)
    assert model.get_embedding_dimension() == 4
    model.save(str(tmp_path / "model"), create_model_card=False)
    kinds = [entry["type"] for entry in json.loads((tmp_path / "model" / "modules.json").read_text())]
    assert kinds[1] == "danlu.text.whitening_module.WhiteningModule"
    again = WhiteningModule.load(str(tmp_path / "model"), subfolder="1_WhiteningModule", local_files_only=True)
    assert torch.equal(again.kernel, module.kernel)
    w, _ = made()
    dense = w.to_dense()
    assert isinstance(dense, Dense)
    x = torch.from_numpy(X).float()
    with torch.no_grad():
        out = dense({"sentence_embedding": x})["sentence_embedding"]
    np.testing.assert_allclose(out.numpy(), w.transform(X), atol=1e-4)


@pytest.mark.slow
def test_a_published_sentence_transformer_goes_through_a_folder(tmp_path):
    sentence_transformers = pytest.importorskip("sentence_transformers")
    model = sentence_transformers.SentenceTransformer(str(builtin_folder("minilm")), device="cpu")
    texts = [f"{who} {what} {where}" for who in ("a cat", "my dog", "one bird") for what in ("sees", "eats", "is")
             for where in ("a house", "the park", "water", "nothing at all")]  # fmt: skip
    raw = model.encode(texts)
    w = Whitening(dim=8, ridge=1e-3).fit(raw)
    expected = w.transform(raw)
    for last, trust in ((w.to_module(), True), (w.to_dense(), False)):
        whitened = sentence_transformers.SentenceTransformer(modules=[*model, last], device="cpu")
        folder = str(tmp_path / type(last).__name__)
        whitened.save(folder, create_model_card=False)
        again = sentence_transformers.SentenceTransformer(folder, device="cpu", trust_remote_code=trust)
        np.testing.assert_allclose(again.encode(texts), expected, atol=1e-3)
        assert again.get_embedding_dimension() == 8
