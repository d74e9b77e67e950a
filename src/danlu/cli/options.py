"""What options may be: their names, values and help, for the subcommands that share them."""

import shlex
import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

__all__ = [
    "Application",
    "BadRows",
    "Compat",
    "Dev",
    "Device",
    "DeviceOption",
    "EngineName",
    "Family",
    "Format",
    "Json",
    "ListWhat",
    "Model",
    "ModelFormat",
    "Objective",
    "OnBadRows",
    "Out",
    "Overwrite",
    "Precision",
    "PrecisionOption",
    "Resume",
    "Scale",
    "Seed",
    "Set",
    "Stored",
    "Test",
    "Threads",
    "Train",
    "With",
    "command_line",
]


class Device(StrEnum):
    """Where to compute."""

    auto, cpu, cuda, mps = "auto", "cpu", "cuda", "mps"


class Precision(StrEnum):
    """Number format of the matrix products."""

    auto, fp32, bf16 = "auto", "fp32", "bf16"


class BadRows(StrEnum):
    """What to do with a row that cannot be used."""

    fail, skip, repair = "fail", "skip", "repair"


class EngineName(StrEnum):
    """Who runs the trials."""

    local, ray = "local", "ray"


class Scale(StrEnum):
    """Size of a recipe's run."""

    smoke, full, large = "smoke", "full", "large"


class ListWhat(StrEnum):
    """What `danlu list` can list."""

    methods, recipes, tricks, tasks, data = "methods", "recipes", "tricks", "tasks", "data"


class ModelFormat(StrEnum):
    """What `danlu convert` writes."""

    hf, tf, onnx = "hf", "tf", "onnx"


class Application(StrEnum):
    """Which tokens a token sees."""

    encoder, lm, unilm = "encoder", "lm", "unilm"


class Stored(StrEnum):
    """Type of stored weights."""

    fp32, bf16, fp16 = "fp32", "bf16", "fp16"


class Objective(StrEnum):
    """What pretraining learns to tell."""

    mlm, lm = "mlm", "lm"


class Compat(StrEnum):
    """Whose epsilons and gelu a model computes with."""

    upstream, bert4keras = "upstream", "bert4keras"


Train = Annotated[
    str,
    typer.Option(
        "--train", help="training file, or a named set such as weibo-ner", metavar="FILE|NAME", show_default=False
    ),
]
Dev = Annotated[str | None, typer.Option("--dev", help="file to choose and stop by", metavar="FILE|NAME")]
Test = Annotated[str | None, typer.Option("--test", help="file that is only measured on", metavar="FILE|NAME")]
Model = Annotated[
    str,
    typer.Option(
        "--model",
        help="dgcnn or dgcnn:4x128 (layers x width), mini-zh, a model folder or TensorFlow checkpoint, bert:4x256",
        metavar="M",
    ),
]
Out = Annotated[
    Path | None, typer.Option("--out", help="folder to write [default: danlu-TASK, danlu-ablate-TASK]", metavar="DIR")
]
With = Annotated[
    list[str] | None,
    typer.Option("--with", help="tricks, comma-separated: fgm,ema:0.999,head:crf", metavar="TRICK[:VALUE],..."),
]
Seed = Annotated[int, typer.Option("--seed", min=0, max=2**31 - 1, help="same seed, same numbers")]
Set = Annotated[
    list[str] | None,
    typer.Option("--set", help="a setting, repeatable: --set epochs=3 --set lr=1e-3", metavar="NAME=VALUE"),
]
Attention = Annotated[
    str | None,
    typer.Option(
        "--attention",
        help="of a transformer: softmax, nystrom, performer, linear, synthesizer_dense ... (docs/attention.md)",
        metavar="A",
    ),
]
Gelu = Annotated[str | None, typer.Option("--gelu", help="of a transformer: erf, tanh or sigmoid", metavar="G")]
Resume = Annotated[bool, typer.Option("--resume", help="go on with an unfinished run")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="replace an earlier result")]
DeviceOption = Annotated[Device, typer.Option("--device")]
PrecisionOption = Annotated[
    Precision, typer.Option("--precision", help="auto: bf16 where the processor multiplies it natively")
]
Threads = Annotated[int | None, typer.Option("--threads", min=1, max=1024, help="threads of one process")]
OnBadRows = Annotated[BadRows, typer.Option("--on-bad-rows", help="skipped rows are counted and listed")]
Format = Annotated[str, typer.Option("--format", help="auto, jsonl, csv, tsv, txt, conll or segmented")]
Family = Annotated[
    str | None, typer.Option("--family", help="bert, roformer, t5.1.1 ... where the files do not tell", metavar="F")
]
Json = Annotated[bool, typer.Option("--json", help="one JSON value on stdout, for machines")]


def command_line() -> str:
    """The command as it was typed, for records."""
    return shlex.join(["danlu", *sys.argv[1:]])
