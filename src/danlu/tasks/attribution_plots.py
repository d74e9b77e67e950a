"""Pictures of what training examples did, for `danlu plot`: a small network trained on the spot with its account."""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from danlu.data import load_digits, load_reviews
from danlu.data.errors import InputError
from danlu.gallery import figures
from danlu.tasks.plot_request import Request

__all__ = ["draw_attributions"]

TRAINED_ON = 200  # examples
TRAINED_STEPS = 120


def draw_attributions(request: Request) -> Any:
    """Which examples made a small network say what it says of an image of the test part."""
    from danlu.probe import PathKernel

    if request.source not in ("digits", "reviews"):
        raise InputError(f"attributions are drawn for a small network on digits or reviews, got {request.source!r}")
    row = int(request.texts[0]) if request.texts and request.texts[0].isdecimal() else 0
    generator = torch.Generator().manual_seed(0)
    texts: list[str]
    if request.source == "digits":
        digits = load_digits()
        x, y = digits.train[0].flatten(1)[:TRAINED_ON], digits.train[1][:TRAINED_ON]
        if row >= len(digits.test[0]):
            raise InputError(f"the test part has {len(digits.test[0])} images, got number {row}")
        asked, names = digits.test[0].flatten(1)[row : row + 1], [str(i) for i in range(10)]
        texts, images, explained = [f"a {int(label)}" for label in y], digits.train[0][:TRAINED_ON], digits.test[0][row]
    else:
        reviews = load_reviews()
        train, test = reviews.train[:TRAINED_ON], reviews.test
        if row >= len(test):
            raise InputError(f"the test part has {len(test)} reviews, got number {row}")
        names = sorted({e.label for e in train})
        x, y = bags([e.text for e in train]), torch.tensor([names.index(e.label) for e in train])
        asked = bags([test[row].text])
        texts, images, explained = [f"{e.label}: {e.text}" for e in train], None, test[row].text
    model = nn.Sequential(nn.Linear(x.shape[1], 16), nn.Tanh(), nn.Linear(16, len(names)))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) / parameter.shape[-1] ** 0.5)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.3)
    path = PathKernel(model, F.cross_entropy, optimizer, asked, len(x))
    for _ in range(TRAINED_STEPS):
        rows = torch.randint(len(x), (20,), generator=generator)
        optimizer.zero_grad()
        path.backward(x[rows], y[rows], rows)
        path.step()
    found = path.result().trusted()
    said = int(found.after[0].argmax())
    title = (
        f"why “{names[said]}” ({float(found.after[0, said]):.2f}), of the account {100 * found.error:.2g} % is missing"
    )
    return figures.plot_attributions(
        found.contributions[0, said], texts, images, explained=explained, name=f"contribution to “{names[said]}”",
        title=title, **request.look,
    )  # fmt: skip


def bags(texts: Sequence[str], size: int = 1024) -> Tensor:
    """Characters of each text, counted in columns by code point and brought to length 1."""
    counts = torch.zeros(len(texts), size)
    for row, text in zip(counts, texts, strict=True):
        for character in text:
            row[ord(character) % size] += 1
    return F.normalize(counts, dim=1)
