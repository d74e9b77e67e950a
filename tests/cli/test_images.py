"""Images on the command line: train, compress, decompress as a user types it; mistakes end with 2 and one message."""

import json
import subprocess
import sys

import numpy as np
import pytest

from danlu.tasks.images import load_images


def danlu(*words, cwd):
    return subprocess.run([sys.executable, "-m", "danlu", *words], cwd=cwd, capture_output=True, text=True, timeout=300)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with images and a small model."""
    folder = tmp_path_factory.mktemp("images")
    np.save(folder / "new.npy", load_images("digits", "test", 60)[0].numpy())
    small = [f"--set={word}" for word in ("epochs=2", "latent_dim=4", "width=8", "components=2")]
    done = danlu(
        "density", "vae", "--images", "digits", "--dev", "digits", "--limit", "400", "--out", "m", *small, cwd=folder
    )
    assert done.returncode == 0, done.stderr
    assert "bits per dimension (bound)" in done.stdout and "wrote m" in done.stdout
    return folder


def test_images_come_back_from_the_command_line(place):
    done = danlu("compress", "m", "new.npy", "a.dlc", "--json", cwd=place)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert told["bytes"] == (place / "a.dlc").stat().st_size < told["raw_bytes"]
    done = danlu("decompress", "m", "a.dlc", "back.npy", cwd=place)
    assert done.returncode == 0 and "60 images (1, 8, 8)" in done.stdout, done.stderr
    assert np.array_equal(np.load(place / "back.npy"), np.load(place / "new.npy"))
    done = danlu("compress", "m", "digits:dev", "b.dlc", "--limit", "7", cwd=place)
    assert done.returncode == 0 and "images       7 in" in done.stdout, done.stderr


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("density", "vae", "--images", "nowhere", "--out", "x"), "no file or folder nowhere"),
        (("density", "vae", "--images", "weibo-ner", "--out", "x"), "weibo-ner is a set for tag, not of images"),
        (("density", "vae", "--images", "digits", "--out", "x", "--set", "latent=3"), "no setting 'latent'"),
        (("density", "vae", "--images", "digits", "--out", "x", "--set", "latent_dim=0"), "latent_dim >= 1"),
        (("density", "vae", "--images", "digits", "--out", "m"), "--overwrite"),
        (("compress", "nowhere", "new.npy", "c.dlc"), "no folder nowhere"),
        (("compress", "m", "new.npy", "new.npy"), "new.npy is there already"),
        (("compress", "m", "new.npy", "no/such/c.dlc"), "cannot write"),
        (("decompress", "m", "new.npy", "c.npy"), "this is no file of compressed images"),
        (("decompress", "m", "nothing", "c.npy"), "cannot read nothing"),
    ],
)
def test_mistakes_end_with_2_and_one_message(place, words, message):
    done = danlu(*words, cwd=place)
    assert done.returncode == 2 and message in done.stderr, done.stderr
    assert "Traceback" not in done.stderr
    assert not (place / "x").exists() and not (place / "x.partial").exists()
