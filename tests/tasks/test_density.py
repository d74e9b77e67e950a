"""Density models from the user's side: train, resume bit for bit, compress, get the same images back, messages."""

import json

import numpy as np
import pytest
import torch

from danlu.data.errors import InputError
from danlu.data.images import read_images
from danlu.tasks.density import DensitySpec, compress_images, decompress_images, train_density
from danlu.tasks.density_model import DensitySettings, build_density, open_density
from danlu.tasks.folder import partial_of

SMALL = DensitySettings(epochs=2.0, batch_size=50, latent_dim=4, width=8, steps=2, levels=1, components=2, lr=3e-3)


@pytest.fixture
def digits(tmp_path):
    """Grey digits of 8 x 8 in 16 levels, as files."""
    from danlu.tasks.images import load_images

    for part, limit in (("train", 300), ("test", 40)):
        x = load_images("digits", part, limit)[0].clamp(max=15)
        np.save(tmp_path / f"{part}.npy", x[:, 0].numpy())
    return tmp_path


def spec(folder, kind, **changed):
    return DensitySpec(
        kind, str(folder / "train.npy"), str(folder / "test.npy"), settings=SMALL, precision="fp32", **changed
    )


@pytest.mark.parametrize("kind", ["vae", "nice", "realnvp", "glow"])
def test_every_kind_trains_codes_near_its_stated_length_and_gives_the_images_back(digits, kind):
    record = train_density(spec(digits, kind), digits / "model")
    assert 0 < record["metrics"]["dev"]["bits_per_dim"] < 6
    assert record["metrics"]["dev"]["bits_per_dim_importance"] < record["metrics"]["dev"]["bits_per_dim"] + 0.3
    assert read_images(digits / "model" / "samples.npy").shape == (100, 1, 8, 8)
    source = digits / "test.npy"
    told = compress_images(digits / "model", str(source), digits / "a.dlc")
    assert (digits / "a.dlc").stat().st_size == told["bytes"] and told["images"] == 40
    assert told["bits_per_dim"] == pytest.approx(
        told["stated_bits_per_dim"], rel=0.06
    )  # 40 images: the first ones cost
    assert decompress_images(digits / "model", digits / "a.dlc", digits / "back.npy")["images"] == 40
    assert torch.equal(read_images(digits / "back.npy"), read_images(source))
    decompress_images(digits / "model", digits / "a.dlc", digits / "pictures")
    assert torch.equal(read_images(digits / "pictures"), read_images(source))


def test_the_coder_proposes_latents_as_the_encoder_does():
    torch.manual_seed(0)
    model = build_density("vae", (1, 8, 8), 16, SMALL).double()
    x = torch.randint(0, 16, (5, 1, 8, 8)).to(torch.uint8)
    mean, sd = model.model.encode(x)
    coded_mean, log_variance = model.coder().encode(x)
    assert torch.equal(coded_mean, mean)
    assert torch.allclose((0.5 * log_variance).exp(), sd, rtol=1e-12)


def test_a_stopped_run_goes_on_with_the_same_bits(digits):
    settings = DensitySettings(**{**SMALL.__dict__, "save_every": 3})
    whole = DensitySpec("vae", str(digits / "train.npy"), settings=settings, precision="fp32")
    train_density(whole, digits / "whole")

    def stop(event):
        if event["event"] == "step" and event["step"] == 8:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_density(whole, digits / "cut", on_event=stop)
    assert (partial_of(digits / "cut") / "state" / "step-000000006").is_dir()
    train_density(whole, digits / "cut", resume=True)
    first, second = (open_density(digits / name)[0].state_dict() for name in ("whole", "cut"))
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not partial_of(digits / "cut").exists()


def test_what_cannot_be_done_is_told(digits):
    with pytest.raises(InputError, match="no density model 'gan'; there are vae, nice, realnvp, glow"):
        train_density(spec(digits, "gan"), digits / "m")
    with pytest.raises(InputError, match=r"no file or folder .*nowhere"):
        train_density(DensitySpec("vae", str(digits / "nowhere")), digits / "m")
    np.save(digits / "odd.npy", np.zeros((3, 7, 9), np.uint8))
    with pytest.raises(InputError, match=r"glow for images \(1, 7, 9\): .*multiples of"):
        train_density(DensitySpec("glow", str(digits / "odd.npy"), settings=SMALL), digits / "m")
    with pytest.raises(InputError, match=r"odd.npy holds images \(1, 7, 9\) of levels up to 0, .* of 16 levels"):
        train_density(DensitySpec("vae", str(digits / "train.npy"), str(digits / "odd.npy")), digits / "m")
    assert not (digits / "m").exists() and not partial_of(digits / "m").exists()
    train_density(spec(digits, "vae"), digits / "m")
    with pytest.raises(InputError, match="holds a result"):
        train_density(spec(digits, "vae"), digits / "m")
    with pytest.raises(InputError, match=r"holds images \(1, 7, 9\) .* was trained on \(1, 8, 8\) of 16 levels"):
        compress_images(digits / "m", str(digits / "odd.npy"), digits / "a.dlc")
    np.save(digits / "bright.npy", np.full((3, 8, 8), 16, np.uint8))
    with pytest.raises(InputError, match=r"holds images \(1, 8, 8\) of levels up to 16; .* of 16 levels"):
        compress_images(digits / "m", str(digits / "bright.npy"), digits / "a.dlc")
    compress_images(digits / "m", str(digits / "test.npy"), digits / "a.dlc", 5)
    with pytest.raises(InputError, match=r"a.dlc is there already"):
        compress_images(digits / "m", str(digits / "test.npy"), digits / "a.dlc")
    train_density(spec(digits, "vae", seed=1), digits / "other")
    with pytest.raises(InputError, match="compressed by another model"):
        decompress_images(digits / "other", digits / "a.dlc", digits / "b.npy")
    with pytest.raises(InputError, match="cannot read"):
        decompress_images(digits / "m", digits / "nowhere", digits / "b.npy")
    task = json.loads((digits / "m" / "task.json").read_text())
    (digits / "m" / "task.json").write_text(json.dumps(task | {"config": {}}))
    with pytest.raises(InputError, match="does not hold together"):
        open_density(digits / "m")
