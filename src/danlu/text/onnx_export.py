r"""A model as an ONNX file, which ONNX Runtime computes anywhere, without Python or torch.

    inputs     ids (B, T), decoder_ids (B, U) of an encoder-decoder, segment_ids (B, T) and condition (B, C) where the
               model reads them, mask (B, T), True for tokens                                                     (1)
    outputs    hidden_states, and what the heads give: pooled, logits, nsp_logits, discriminator_logits;
               encoder_hidden_states of an encoder-decoder                                                        (2)

B, T and U are free in the file, T and U up to the position table's rows. The whole text is computed, padding included;
a row without any token gives meaningless numbers like all padding, not NaN. Weights of more than 1.9 GB, which an ONNX
file cannot hold, lie in a second file beside it.

Source: the ONNX standard, as torch's exporter (torch.export, torch.onnx) writes it.
Shapes: B sequences, T and U tokens, C features of a condition.
"""

from __future__ import annotations

import logging
import os
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from danlu.data.errors import InputError
from danlu.nn.attention import some_key
from danlu.text.transformer import EncoderDecoder, Transformer

__all__ = ["export_onnx", "need_onnx"]

_OUTPUTS = (
    "hidden_states",
    "pooled",
    "logits",
    "nsp_logits",
    "discriminator_logits",
    "encoder_hidden_states",
)  # eq. (2)
_ONE_FILE = 1_900_000_000  # bytes of weights; protocol buffers end at 2 GiB
_CHATTY = ("torch.onnx", "torch.export", "torch._dynamo", "onnxscript", "onnx_ir", "onnx")


def need_onnx() -> None:
    """Import what the exporter needs; before anything is written, for a signal inside their C++ ends the process.

    Raises:
        ImportError: onnx or onnxscript is not installed.
    """
    try:
        import onnx  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise ImportError(
            f'writing ONNX needs {error.name}, which is not installed: pip install "danlu[onnx]"'
        ) from None


def export_onnx(model: Transformer | EncoderDecoder, path: str | Path, *, overwrite: bool = False) -> None:
    """Write a model as an ONNX file with free batch size and length; inputs and outputs are those of eqs. (1) and (2).

    Args:
        model: of any family, with float32 weights on the CPU; it is exported as in evaluation.
        path: the file to write; its folder must exist. Large weights go to the same name with ".data" after it.
        overwrite: replace files of these names.

    Raises:
        InputError: the file exists and `overwrite` is False, it is a folder, or its folder is missing.
        ValueError: the weights are not float32 on the CPU, or laid out by `danlu.text.inference`.
        ImportError: onnx or onnxscript is not installed.
    """
    path = Path(os.path.abspath(path))
    data = path.with_name(path.name + ".data")
    _check_model(model)
    if path.is_dir() or not path.parent.is_dir():
        what = f"{path} is a folder" if path.is_dir() else f"{path.parent} is no folder"
        raise InputError(f"{what}; give the name of a file in a folder that exists, such as model.onnx")
    there = next((place for place in (path, data) if place.exists()), None)
    if there is not None and not overwrite:
        raise InputError(f"{there} exists; overwrite=True replaces it, or give another name")
    need_onnx()
    inputs, free = _inputs(model)
    was_training = model.training
    try:
        graph = _Graph(model).eval()
        with torch.no_grad(), _silent():
            program = torch.onnx.export(
                graph, (), kwargs=inputs, input_names=list(inputs), output_names=_outputs(model), dynamic_shapes=free,
                dynamo=True, verbose=False,
            )  # fmt: skip
    finally:
        model.train(was_training)
    assert program is not None
    for given in program.model.graph.inputs:
        shape = given.shape
        assert given.name is not None and shape is not None
        for axis, size in free[given.name].items():
            if isinstance(shape[axis], int):  # the exporter does so without a word where a graph depends on it
                raise RuntimeError(f"torch's exporter fixed {size.__name__} of {given.name} at {shape[axis]}")
    weight = sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".exporting.") as place:
        with _silent():  # the name of the second file stands in the first, so both get their own names at once
            program.save(str(Path(place) / path.name), external_data=weight > _ONE_FILE)
        for part in (data, path):
            made = Path(place) / part.name
            if made.exists():
                with made.open("rb") as file:
                    os.fsync(file.fileno())
                os.replace(made, part)
            else:
                part.unlink(missing_ok=True)  # of an earlier, larger model


class _Graph(nn.Module):
    """The model as a function of eq. (1) that returns a tuple of eq. (2)."""

    def __init__(self, model: Transformer | EncoderDecoder) -> None:
        super().__init__()
        self.model = model

    def forward(
        self,
        ids: Tensor,
        mask: Tensor,
        decoder_ids: Tensor | None = None,
        segment_ids: Tensor | None = None,
        condition: Tensor | None = None,
    ) -> tuple[Tensor, ...]:
        mask = some_key(mask)
        if isinstance(self.model, EncoderDecoder):
            assert decoder_ids is not None
            out = self.model(ids, decoder_ids, mask=mask, condition=condition)
        else:
            out = self.model(ids, segment_ids, mask=mask, condition=condition)
        return tuple(value for name in _OUTPUTS if (value := getattr(out, name)) is not None)


def _outputs(model: Transformer | EncoderDecoder) -> list[str]:
    """Those of `_OUTPUTS` that the model gives, in this order."""
    if isinstance(model, EncoderDecoder):
        return ["hidden_states", "logits", "encoder_hidden_states"]
    of_heads = {"pooled": "pooler", "logits": "mlm", "nsp_logits": "nsp", "discriminator_logits": "discriminator"}
    return [name for name in _OUTPUTS[:-1] if name == "hidden_states" or of_heads[name] in model.heads]


def _inputs(model: Transformer | EncoderDecoder) -> tuple[dict[str, Tensor], dict[str, dict[int, Any]]]:
    """An example of each input, and its free axes."""
    config = model.config
    learned = config.traits.positions == "learned"
    batch = torch.export.Dim("batch", min=1)
    length = torch.export.Dim("tokens", min=1, max=config.max_positions if learned else None)
    tokens = min(7, config.max_positions) if learned else 7
    ids = torch.zeros(3, tokens, dtype=torch.int64)
    inputs, free = {"ids": ids, "mask": ids == 0}, {"ids": {0: batch, 1: length}, "mask": {0: batch, 1: length}}
    if config.traits.encoder_decoder:
        inputs["decoder_ids"] = ids[:, :5]
        free["decoder_ids"] = {0: batch, 1: torch.export.Dim("decoder_tokens", min=1)}
    if config.application == "unilm" or (config.traits.segments and config.segment_vocab_size):
        inputs["segment_ids"] = ids.clone()
        free["segment_ids"] = {0: batch, 1: length}
    if config.condition_size is not None:
        inputs["condition"] = torch.zeros(3, config.condition_size)
        free["condition"] = {0: batch}
    return inputs, free


def _check_model(model: Transformer | EncoderDecoder) -> None:
    wrong = next((p for p in model.parameters() if p.dtype != torch.float32 or p.device.type != "cpu"), None)
    if wrong is not None:
        raise ValueError(
            f"export_onnx takes float32 weights on the CPU, got {wrong.dtype} on {wrong.device}; pass "
            "model.float().cpu(); ONNX Runtime's own tools make smaller files of the result"
        )
    if any(type(part).__name__ == "PackedLinear" for part in model.modules()):
        raise ValueError("export_onnx takes the model itself, not the one that for_inference returned")


@contextmanager
def _silent() -> Iterator[None]:
    """Without the exporter's warnings and log lines, which tell its authors of its progress; both come back after."""
    loggers = [logging.getLogger(name) for name in _CHATTY]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.CRITICAL)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
