"""Whitening the object: streams and merges like one fit, scikit-learn's manners, kinds of input, files, messages."""

import copy
import json
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from two_processes import in_two_processes

from danlu.data.errors import InputError
from danlu.math import moments
from danlu.text import Whitening, whitening


def draw(n: int = 200, dim: int = 6, seed: int = 0) -> np.ndarray:
    generator = np.random.default_rng(seed)
    return generator.standard_normal((n, dim)) @ generator.standard_normal((dim, dim)) + 5


X = draw()


def test_equals_the_function():
    m = moments(torch.from_numpy(X))
    for options in ({}, {"dim": 3}, {"beta": 0.5, "gamma": 0.5}, {"dim": "participation", "ridge": 0.01}):
        kernel, bias = whitening(m.mean, m.covariance, **options)
        w = Whitening(**options).fit(X)
        np.testing.assert_allclose(w.transform(X), X @ kernel.numpy() + bias.numpy(), atol=1e-10)
        torch.testing.assert_close(w.bias_, bias, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("cuts", [[1], [199], [50, 51, 120], list(range(1, 200))])
def test_any_stream_and_merge_equals_one_fit(cuts):
    whole = Whitening().fit(X)
    parts = np.split(X, cuts)
    streamed = Whitening()
    for part in parts:
        streamed.partial_fit(part)
    merged = Whitening().partial_fit(parts[-1])
    for part in parts[-2::-1]:
        merged.merge(Whitening().partial_fit(part))
    for other in (streamed, merged, Whitening().fit(iter(parts))):
        assert other.n_samples_seen_ == 200
        torch.testing.assert_close(other.mean_, whole.mean_, rtol=1e-10, atol=1e-10)
        torch.testing.assert_close(other.kernel_, whole.kernel_, rtol=1e-8, atol=1e-10)


def test_partial_fit_may_start_with_one_vector_and_fit_starts_anew():
    w = Whitening().partial_fit(X[:1])
    with pytest.raises(ValueError, match="no variance at all"):
        w.transform(X)
    w.partial_fit(X[1:])
    np.testing.assert_allclose(w.transform(X), Whitening().fit(X).transform(X), atol=1e-9)
    w.fit(X[:50])
    assert w.n_samples_seen_ == 50


def test_a_failed_fit_changes_nothing():
    w = Whitening().fit(X)
    before = w.transform(X)
    spoilt = X.copy()
    spoilt[7, 2] = np.nan
    for call in (w.fit, w.partial_fit):
        with pytest.raises(ValueError, match="vector 7 holds nan at feature 2"):
            call(spoilt)
    with pytest.raises(ValueError, match="no variance"):
        w.fit(X[:1])
    with pytest.raises(ValueError, match="got 6 and 5 features"):
        w.partial_fit(X[:, :5])
    assert np.array_equal(w.transform(X), before)
    assert w.n_samples_seen_ == 200


def test_options_change_the_map_without_another_fit():
    w = Whitening().fit(X)
    for options in ({"gamma": 0.5}, {"beta": 0.0}, {"eps": 0.1}, {"ridge": 0.1}, {"dim": 2}, {"normalize": True}):
        w.set_params(**options)
        np.testing.assert_allclose(w.transform(X), Whitening(**w.get_params()).fit(X).transform(X), atol=1e-9)
    w.dim = 99
    with pytest.raises(ValueError, match="the vectors have 6 features"):
        w.transform(X)


def test_inverse():
    w = Whitening().fit(X)
    np.testing.assert_allclose(w.inverse_transform(w.transform(X)), X, atol=1e-10)
    for options in ({"beta": 0.5, "gamma": 0.3}, {"gamma": 0.0, "beta": 0.0}):
        w.set_params(**options)
        np.testing.assert_allclose(w.inverse_transform(w.transform(X)), X, atol=1e-10)
    pca = pytest.importorskip("sklearn.decomposition").PCA(2, whiten=True, svd_solver="full")
    projected = pca.inverse_transform(pca.fit_transform(X))
    w = Whitening(dim=2).fit(X)
    np.testing.assert_allclose(w.inverse_transform(w.transform(X)), projected, atol=1e-9)
    y = torch.from_numpy(w.transform(X)).float()
    assert w.inverse_transform(y).dtype == torch.float32
    with pytest.raises(ValueError, match="normalize=True cannot be inverted"):
        w.set_params(normalize=True).inverse_transform(y)


def test_scikit_learn_pipeline_clone_and_grid():
    sklearn = pytest.importorskip("sklearn")
    from sklearn.base import clone
    from sklearn.linear_model import Ridge
    from sklearn.model_selection import GridSearchCV
    from sklearn.pipeline import make_pipeline

    assert sklearn.__version__
    target = X @ np.arange(6.0)
    pipe = make_pipeline(Whitening(), Ridge(alpha=1e-6)).fit(X, target)
    assert pipe.score(X, target) > 0.999
    assert list(pipe[:-1].get_feature_names_out()) == [f"whitening{i}" for i in range(6)]
    found = GridSearchCV(pipe, {"whitening__dim": [1, 6], "whitening__gamma": [0.0, 1.0]}, cv=3).fit(X, target)
    assert found.best_params_["whitening__dim"] == 6
    copied = clone(Whitening(dim=3, beta=0.5).fit(X))
    assert copied.get_params() == Whitening(dim=3, beta=0.5).get_params()
    assert not hasattr(copied, "kernel_")
    assert not hasattr(copied, "n_features_in_")
    assert repr(copied).startswith("Whitening(dim=3, beta=0.5, gamma=1.0")


@pytest.mark.parametrize("dtype", ["float64", "float32", "float16", ">f8", "longdouble", "int64", "bool"])
def test_dtypes_of_arrays(dtype):
    x = (X > 5) if dtype == "bool" else X.astype(dtype)
    w = Whitening().fit(x)
    y = w.transform(x)
    expected = np.dtype(dtype).newbyteorder("=") if dtype in ("float64", "float32", "float16", ">f8") else np.float64
    assert y.dtype == expected
    np.testing.assert_allclose(np.cov(y.astype(float), rowvar=False, bias=True), np.eye(6), atol=0.02)
    tight = {"float16": 5e-3, "float32": 1e-5}.get(dtype, 1e-9)
    exact = Whitening(products="float64").fit(np.asarray(x, float)).transform(np.asarray(x, float))
    np.testing.assert_allclose(y.astype(float), exact, atol=tight * 10)


def test_kinds_of_input():
    w = Whitening().fit(X)
    expected = w.transform(X)
    frozen = X.copy()
    frozen.flags.writeable = False
    for same in (X.tolist(), np.asfortranarray(X), X[::-1][::-1], frozen, np.concatenate([X, X], 1)[:, :6]):
        np.testing.assert_allclose(w.transform(same), expected, atol=1e-12)
        np.testing.assert_allclose(Whitening().fit(same).transform(X), expected, atol=1e-9)
    tensor = w.transform(torch.from_numpy(X))
    assert isinstance(tensor, torch.Tensor)
    np.testing.assert_allclose(tensor.numpy(), expected, atol=1e-12)
    assert w.transform(torch.from_numpy(X).bfloat16()).dtype == torch.bfloat16
    assert w.transform(X[:0]).shape == (0, 6)
    assert w.transform(X[:0].astype("float32")).dtype == np.float32
    assert w.transform(torch.zeros(0, 6)).shape == (0, 6)
    assert w.transform(X[:0].astype("longdouble")).dtype == np.float64


def test_read_only_file_larger_than_a_batch(tmp_path):
    big = np.tile(draw(5000, 3).astype("float32"), (2, 1))
    np.save(tmp_path / "x.npy", big)
    mapped = np.load(tmp_path / "x.npy", mmap_mode="r")
    w = Whitening().fit(mapped)
    np.testing.assert_allclose(w.transform(mapped), Whitening().fit(big).transform(big), atol=1e-5)


def test_inputs_and_graphs_are_left_alone():
    before = X.copy()
    w = Whitening().fit(X)
    w.transform(X)
    assert np.array_equal(X, before)
    x = torch.from_numpy(X).requires_grad_()
    y = w.transform(x)
    y.square().sum().backward()
    assert x.grad is not None
    with torch.no_grad():
        assert not w.transform(x).requires_grad
    assert not Whitening().fit(x).kernel_.requires_grad


def test_float32_with_a_mean_of_a_hundred_spreads():
    """The case of the benchmark, small: covariance after whitening within 1e-6 of 1 where PCA in float32 fails."""
    decomposition = pytest.importorskip("sklearn.decomposition")
    generator = np.random.default_rng(0)
    x = (generator.standard_normal((4000, 16)) + 100).astype("float32")
    ours, theirs = Whitening().fit(x).transform(x), decomposition.PCA(whiten=True).fit_transform(x)
    error = [np.abs(np.cov(y.astype(float), rowvar=False, bias=True) - np.eye(16)).max() for y in (ours, theirs)]
    assert error[0] < 1e-6
    assert error[1] > 1e-2
    assert np.abs(ours.astype(float).mean(0)).max() < 1e-5


def test_eps_follows_the_precision_of_the_products():
    x = np.random.default_rng(0).standard_normal((200, 6)) * np.array([1, 1, 1, 1, 1, 3e-4])
    assert Whitening().fit(x).kernel_.shape[1] == 6
    assert Whitening().fit(x.astype("float32")).kernel_.shape[1] == 5
    assert Whitening(products="float64").fit(x.astype("float32")).kernel_.shape[1] == 6
    assert Whitening(eps=1e-12).fit(x.astype("float32")).kernel_.shape[1] == 6


def test_files(tmp_path):
    w = Whitening(dim=3, beta=0.5, normalize=True).fit(X.astype("float32"))
    w.save(tmp_path / "w.safetensors")
    again = Whitening.load(tmp_path / "w.safetensors")
    assert again.get_params() == w.get_params()
    assert again.moments_.products == torch.float32
    assert np.array_equal(again.transform(X), w.transform(X))
    again.partial_fit(draw(30, seed=1))
    w.partial_fit(draw(30, seed=1))
    assert np.array_equal(again.transform(X), w.transform(X))
    for other in (pickle.loads(pickle.dumps(w)), copy.deepcopy(w)):
        assert np.array_equal(other.transform(X), w.transform(X))


def test_files_that_are_none(tmp_path):
    with pytest.raises(InputError, match=r"is no file; give the path that Whitening\.save wrote"):
        Whitening.load(tmp_path / "missing")
    (tmp_path / "text").write_text("hello")
    with pytest.raises(InputError, match=r"was not written by Whitening\.save, or is damaged"):
        Whitening.load(tmp_path / "text")
    from safetensors.torch import save_file

    save_file({"mean": torch.zeros(1)}, tmp_path / "other")
    with pytest.raises(InputError, match=r"was not written by Whitening\.save"):
        Whitening.load(tmp_path / "other")
    about = {"count": 1, "products": "float64", "params": {"unknown": 1}}
    tensors = {"mean": torch.zeros(1), "scatter": torch.zeros(1, 1)}
    save_file(tensors, tmp_path / "newer", metadata={"danlu.whitening": json.dumps(about)})
    with pytest.raises(InputError, match="unknown"):
        Whitening.load(tmp_path / "newer")


def test_linear_layer():
    w = Whitening(dim=4).fit(X)
    layer = w.to_linear(torch.float64)
    with torch.no_grad():
        np.testing.assert_allclose(layer(torch.from_numpy(X)).numpy(), w.transform(X), atol=1e-10)
    assert w.to_linear().weight.shape == (4, 6)


def test_report():
    found = Whitening(dim=2).fit(X).report()
    assert (found["vectors"], found["features"], found["dim"]) == (200, 6, 2)
    assert found["vectors_per_feature"] == pytest.approx(200 / 6)
    values = np.linalg.eigvalsh(np.cov(X, rowvar=False, bias=True))[::-1]
    assert found["share"] == pytest.approx(values[:2].sum() / values.sum())
    assert found["condition"] == pytest.approx(values[0] / values[1])
    assert found["participation"] == pytest.approx(values.sum() ** 2 / (values**2).sum())
    assert found["mean_to_spread"] == pytest.approx(np.linalg.norm(X.mean(0)) / np.sqrt(values.sum()))


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (X[0], r"fit needs vectors \(N, D\) of real numbers, got ndarray \(6,\) of float64; one vector is x\[None\]"),
        ([["a", "b"]], "got list"),
        (X + 1j, "complex128"),
        (X[:, :0], r"got ndarray \(200, 0\)"),
        (X[:0], "fit got no vectors"),
        (iter([]), "an iterator without batches"),
        (object(), r"got object \(\) of object"),
    ],
)
def test_messages_of_vectors(value, message):
    with pytest.raises(ValueError, match=message):
        Whitening().fit(value)


def test_messages():
    with pytest.raises(ValueError, match="has seen no vectors; call fit or partial_fit first"):
        Whitening().transform(X)
    with pytest.raises(ValueError, match="has seen no vectors"):
        Whitening().fit(X).merge(Whitening())
    with pytest.raises(ValueError, match="products must be 'float32', 'float64' or None, got 'half'"):
        Whitening(products="half").fit(X)
    with pytest.raises(ValueError, match="no option 'size'; there are dim, beta, gamma"):
        Whitening().set_params(size=3)
    w = Whitening(dim=3).fit(X)
    with pytest.raises(ValueError, match="transform got vectors of 5 features, this Whitening has 6"):
        w.transform(X[:, :5])
    with pytest.raises(ValueError, match="inverse_transform got vectors of 6 dimensions, this Whitening has 3"):
        w.inverse_transform(X)
    with pytest.raises(ValueError, match=r"needs torch\.distributed\.init_process_group"):
        w.all_reduce()


def process(rank: int) -> torch.Tensor:
    w = Whitening(dim=4).partial_fit(X[:70] if rank == 0 else X[70:]).all_reduce()
    return torch.from_numpy(w.transform(X))


@pytest.mark.slow
def test_two_processes_equal_one(tmp_path: Path) -> None:
    first, second = (found.numpy() for found in in_two_processes(process, tmp_path))
    assert np.array_equal(first, second)
    np.testing.assert_allclose(first, Whitening(dim=4).fit(X).transform(X), atol=1e-9)
