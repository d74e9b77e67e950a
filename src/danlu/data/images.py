r"""Images of the user: one array, one picture, or a folder of pictures of one size.

    .npy     uint8 (N, H, W), (N, C, H, W) or (N, H, W, C), C = 1 or 3                                        (1)
    .png, .jpg, .webp ...   one picture; grey stays grey, everything else becomes three colours               (2)
    folder   its pictures in the order of their names; subfolders are not read                                (3)

Source: own definition.
Shapes: N images of C channels, H x W pixels.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from danlu.data.atomic import write_whole
from danlu.data.errors import InputError

__all__ = ["read_images", "write_images"]
PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".pgm", ".ppm")
LARGEST = 2**26  # pixels of one picture


def read_images(path: str | Path) -> Tensor:
    """The images under a path.

    Args:
        path: of an array, a picture or a folder, see (1) to (3).

    Returns:
        (N, C, H, W) uint8.

    Raises:
        InputError: nothing there, nothing that is an image, or pictures of several sizes; told with the file.
        ImportError: pictures, and Pillow is not installed.
    """
    path = Path(path)
    if path.is_dir():
        files = sorted(p for p in path.iterdir() if p.suffix.lower() in PICTURES)
        if not files:
            raise InputError(f"{path} holds no pictures ({', '.join(PICTURES)})")
        return _stacked(files, [_picture(p) for p in files])
    if not path.is_file():
        raise InputError(f"no file or folder {path}; give a .npy of uint8, a picture, or a folder of pictures")
    if path.suffix.lower() == ".npy":
        return _array(path)
    if path.suffix.lower() in PICTURES:
        return _stacked([path], [_picture(path)])
    raise InputError(f"{path} is neither .npy nor a picture ({', '.join(PICTURES)})")


def write_images(path: str | Path, x: Tensor) -> list[Path]:
    """Write images where `read_images` finds the same again.

    Args:
        path: ending in .npy: one array; anything else: a folder, which is made, of numbered PNG files.
        x: (N, C, H, W) uint8, C = 1 or 3.

    Returns:
        The files.

    Raises:
        InputError: the folder holds something, or cannot be written.
        ImportError: pictures, and Pillow is not installed.
    """
    path = Path(path)
    arrays = (x[:, 0] if x.shape[1] == 1 else x.permute(0, 2, 3, 1)).contiguous().numpy()
    if path.suffix.lower() == ".npy":
        import io

        buffer = io.BytesIO()
        np.save(buffer, x.contiguous().numpy(), allow_pickle=False)
        _told(path, lambda: write_whole(path, buffer.getvalue()))
        return [path]
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise InputError(f"{path} is there already; name a new folder, or a file ending in .npy")
    image = _pillow()
    _told(path, lambda: path.mkdir(parents=True, exist_ok=True))
    digits = len(str(len(x) - 1))
    files = [path / f"{i:0{digits}}.png" for i in range(len(x))]
    for file, array in zip(files, arrays, strict=True):
        image.fromarray(array).save(file, optimize=True)
    return files


def _array(path: Path) -> Tensor:
    try:
        array = np.load(path, allow_pickle=False)
    except (ValueError, OSError, EOFError) as error:
        raise InputError(f"{path} cannot be read as an array: {error}") from None
    if not isinstance(array, np.ndarray) or array.dtype != np.uint8 or array.ndim not in (3, 4) or not array.size:
        raise InputError(
            f"{path} must hold uint8 (N, H, W), (N, C, H, W) or (N, H, W, C), got {array.dtype} {array.shape}"
        )
    if array.ndim == 3:
        array = array[:, None]
    elif array.shape[1] not in (1, 3) and array.shape[3] in (1, 3):
        array = array.transpose(0, 3, 1, 2)
    if array.shape[1] not in (1, 3):
        raise InputError(f"{path} must hold images of 1 or 3 channels, got an array {array.shape}")
    return torch.from_numpy(np.ascontiguousarray(array))


def _picture(path: Path) -> np.ndarray:
    image = _pillow()
    try:
        with image.open(path) as opened:
            if opened.width * opened.height > LARGEST:
                raise InputError(f"{path} has {opened.width} x {opened.height} pixels, more than {LARGEST:,}")
            picture = np.asarray(opened.convert("L" if opened.mode in ("L", "1") else "RGB"))
    except (OSError, SyntaxError, ValueError, image.DecompressionBombError) as error:
        raise InputError(f"{path} cannot be read as a picture: {error}") from None
    return picture[None] if picture.ndim == 2 else picture.transpose(2, 0, 1)


def _stacked(files: Sequence[Path], pictures: Sequence[np.ndarray]) -> Tensor:
    for file, picture in zip(files, pictures, strict=True):
        if picture.shape != pictures[0].shape:
            channels, height, width = picture.shape
            first = pictures[0].shape
            raise InputError(
                f"{file} has {channels} channels of {height} x {width} pixels, {files[0].name} has {first[0]} of "
                f"{first[1]} x {first[2]}; one model takes images of one size"
            )
    return torch.from_numpy(np.stack(pictures))


def _pillow() -> Any:
    try:
        from PIL import Image
    except ImportError:
        raise ImportError('pictures need Pillow; pip install "danlu[plots]", or give a .npy') from None
    return Image


def _told(path: Path, write: Any) -> None:
    try:
        write()
    except OSError as error:
        raise InputError(f"cannot write {path}: {error.strerror or error}") from None
