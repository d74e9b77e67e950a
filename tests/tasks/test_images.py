"""Images by name: whole numbers, disjoint parts, any order of the file, messages."""

import hashlib
import json

import numpy as np
import pytest
import torch

from danlu.data import load_digits
from danlu.data.errors import InputError
from danlu.tasks.datasets import find
from danlu.tasks.images import image_levels, load_images


def folder_with(tmp_path, monkeypatch, **arrays):
    """A DANLU_DATA with a small mnist."""
    path = tmp_path / "data" / "mnist" / "mnist.npz"
    path.parent.mkdir(parents=True)
    np.savez(path, **arrays)
    entry = {"file": "mnist/mnist.npz", "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}
    (tmp_path / "data" / "MANIFEST.json").write_text(json.dumps([{"name": "mnist", "files": [entry]}]))
    monkeypatch.setenv("DANLU_DATA", str(tmp_path))


def test_digits_are_the_embedded_ones_in_seventeen_levels():
    x, y = load_images("digits", "dev")
    images, labels = load_digits().dev
    assert x.shape == (180, 1, 8, 8) and x.dtype == torch.uint8 and int(x.max()) == image_levels("digits") - 1
    assert torch.equal(x[:, 0] / 16.0, images) and torch.equal(y, labels)
    assert torch.equal(load_images("digits", "dev", 7)[0], x[:7])


def test_parts_are_disjoint_and_do_not_depend_on_the_order_of_the_file(tmp_path, monkeypatch):
    images = torch.randint(0, 256, (300, 28, 28), generator=torch.Generator().manual_seed(0)).to(torch.uint8).numpy()
    labels = np.arange(300, dtype=np.uint8) % 10
    test = {"x_test": images[:5], "y_test": labels[:5]}
    found = []
    for name, order in (("a", np.arange(300)), ("b", np.arange(300)[::-1])):
        folder_with(tmp_path / name, monkeypatch, x_train=images[order], y_train=labels[order], **test)
        found.append([load_images("mnist", part) for part in ("train", "dev")])
    assert all(torch.equal(a, b) for one, other in zip(*found, strict=True) for a, b in zip(one, other, strict=True))
    (train, y), (dev, _) = found[0]
    assert len(train) + len(dev) == 300 and 10 <= len(dev) <= 60 and train.shape[1:] == (1, 28, 28)
    place = {image.tobytes(): i for i, image in enumerate(images)}
    assert [int(labels[place[x.numpy().tobytes()]]) for x in train] == y.tolist()
    assert not {x.numpy().tobytes() for x in train} & {x.numpy().tobytes() for x in dev}
    assert torch.equal(load_images("mnist", "train", 20)[0], train[:20])
    assert load_images("mnist", "test")[0].shape == (5, 1, 28, 28)


@pytest.mark.data
def test_stored_sets_have_the_rows_that_are_listed(shared, monkeypatch):
    monkeypatch.setenv("DANLU_DATA", str(shared))
    for name in ("mnist", "fashion-mnist"):
        rows = find(name).rows
        for part in ("train", "dev", "test"):
            x, y = load_images(name, part)
            assert (len(x), len(y), int(x.max())) == (rows[part], rows[part], 255)
            assert y.bincount().min() > 0.08 * len(y)
    x, _ = load_images("cifar10", "test", 3)
    assert x.shape == (3, 3, 32, 32) and x.float().std() > 30


def test_messages(monkeypatch):
    with pytest.raises(InputError, match="weibo-ner is a set for tag, not of images; those are digits, mnist"):
        load_images("weibo-ner", "train")
    with pytest.raises(InputError, match="has the parts train, dev and test, not 'all'"):
        load_images("digits", "all")
    monkeypatch.delenv("DANLU_DATA", raising=False)
    with pytest.raises(InputError, match="mnist is not on this machine: DANLU_DATA is not set"):
        load_images("mnist", "train")
