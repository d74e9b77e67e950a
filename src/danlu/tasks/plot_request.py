"""What a picture of `danlu plot` is to be made of, and how its model is opened."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from danlu.data.errors import InputError
from danlu.tasks.encoder import Encoder, open_encoder
from danlu.text.builtin import BUILTIN, builtin_folder

__all__ = ["Request", "model_ids", "one_text", "open_model", "titled"]

SAMPLE = "大肠杆菌是人和许多动物肠道中最主要且数量最多的一种细菌"
LONGEST = 512  # tokens of a text


@dataclass(frozen=True)
class Request:
    """What a picture is to be made of.

    source: a model folder or name, or a file. texts: from the command line. out: the file to write. data: a file or
    set of texts or pairs. layer, head: numbers from 1; None: all of them, averaged where one is drawn. landmarks: of
    the factors. dark: light on dark. overwrite: replace a file that is there.
    """

    source: str
    texts: tuple[str, ...] = ()
    out: Path = Path("plot.png")
    data: str | None = None
    layer: int | None = None
    head: int | None = None
    landmarks: int = 16
    dark: bool = False
    overwrite: bool = False

    @property
    def look(self) -> dict[str, Any]:
        """Arguments that every picture takes."""
        return {"path": self.out, "dark": self.dark}


def open_model(request: Request) -> Encoder:
    """The encoder of a built-in name, a folder or a checkpoint, ready to read."""
    if request.source in BUILTIN:
        path = builtin_folder(request.source)
    else:
        path = Path(request.source)
        if not path.exists() and not list(path.parent.glob(path.name + ".*")):
            raise InputError(
                f"no model {request.source!r}; give a folder, a checkpoint, or one of {', '.join(BUILTIN)}"
            )
    return open_encoder(path).eval()


def one_text(request: Request) -> str:
    """The text to look at."""
    if len(request.texts) > 1:
        raise InputError(f"this view shows one text, got {len(request.texts)}; put quotes around it")
    if request.texts and not request.texts[0].strip():
        raise InputError("the text is empty; give one, or leave it out for a sample")
    return request.texts[0] if request.texts else SAMPLE


def model_ids(encoder: Encoder, text: str) -> Tensor:
    """(1, T) ids of a text with its special tokens, within the model's positions."""
    ids = encoder.tokenizer.encode(text, maxlen=encoder.room(LONGEST))[0]
    return torch.tensor([ids])


def titled(request: Request, *parts: str) -> str:
    """Name of the model, then what is shown."""
    return ", ".join([Path(request.source).name, *parts])
