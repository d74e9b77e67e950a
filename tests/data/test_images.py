"""Images of the user: arrays and pictures come back bit for bit; what is none is told with its name."""

import numpy as np
import pytest
import torch
from PIL import Image

from danlu.data.errors import InputError
from danlu.data.images import read_images, write_images


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("name", ["images.npy", "folder"])
def test_images_come_back_bit_for_bit(tmp_path, channels, name):
    x = torch.randint(0, 256, (12, channels, 5, 7), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    files = write_images(tmp_path / name, x)
    assert len(files) == (1 if name.endswith("npy") else 12) and all(f.is_file() for f in files)
    assert torch.equal(read_images(tmp_path / name), x)
    if name == "folder":
        assert torch.equal(read_images(files[11]), x[11:])
        with pytest.raises(InputError, match="folder is there already; name a new folder"):
            write_images(tmp_path / name, x)


@pytest.mark.parametrize("shape", [(4, 6, 5), (4, 1, 6, 5), (4, 6, 5, 1)])
def test_arrays_of_grey_images_in_every_order(tmp_path, shape):
    array = np.arange(120, dtype=np.uint8).reshape(shape)
    np.save(tmp_path / "a.npy", array)
    assert torch.equal(read_images(tmp_path / "a.npy"), torch.arange(120, dtype=torch.uint8).view(4, 1, 6, 5))


def test_transparency_and_palettes_become_colours(tmp_path):
    Image.new("RGBA", (3, 2), (9, 8, 7, 100)).save(tmp_path / "a.png")
    assert read_images(tmp_path / "a.png")[0, :, 0, 0].tolist() == [9, 8, 7]


def test_what_is_no_image_is_told(tmp_path):
    (tmp_path / "empty").mkdir()
    np.save(tmp_path / "float.npy", np.zeros((2, 3, 3)))
    np.save(tmp_path / "five.npy", np.zeros((2, 5, 3, 4), np.uint8))
    np.save(tmp_path / "object.npy", np.array([{}], dtype=object), allow_pickle=True)
    (tmp_path / "bad.png").write_bytes(b"\x89PNG")
    (tmp_path / "a.txt").write_text("x")
    for name, message in {
        "nowhere": "no file or folder .*nowhere; give a .npy of uint8",
        "empty": "empty holds no pictures",
        "float.npy": r"must hold uint8 .*, got float64 \(2, 3, 3\)",
        "five.npy": r"must hold images of 1 or 3 channels, got an array \(2, 5, 3, 4\)",
        "object.npy": "object.npy cannot be read as an array",
        "bad.png": "bad.png cannot be read as a picture",
        "a.txt": "a.txt is neither .npy nor a picture",
    }.items():
        with pytest.raises(InputError, match=message):
            read_images(tmp_path / name)
    folder = tmp_path / "two"
    folder.mkdir()
    Image.new("L", (3, 2)).save(folder / "a.png")
    Image.new("L", (2, 3)).save(folder / "b.png")
    with pytest.raises(InputError, match=r"b.png has 1 channels of 3 x 2 pixels, a.png has 1 of 2 x 3"):
        read_images(folder)
    with pytest.raises(InputError, match="cannot write"):
        write_images(tmp_path / "a.txt" / "b.npy", torch.zeros(1, 1, 2, 2, dtype=torch.uint8))
