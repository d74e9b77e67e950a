"""The subcommands that train models and use them; each imports what it needs when it is called."""

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from danlu.cli.options import (
    Attention,
    BadRows,
    Dev,
    Device,
    DeviceOption,
    EngineName,
    Format,
    Gelu,
    Json,
    Model,
    Objective,
    OnBadRows,
    Out,
    Overwrite,
    Precision,
    PrecisionOption,
    Resume,
    Seed,
    Set,
    Stored,
    Test,
    Threads,
    Train,
    With,
    command_line,
)

__all__ = ["ablate", "demo", "evaluate", "predict", "pretrain", "serve", "train"]


def _spec(
    task: str,
    train: str,
    dev: str | None,
    test: str | None,
    model: str,
    tricks: list[str] | None,
    seed: int,
    settings: list[str] | None,
    device: Device,
    precision: Precision,
    threads: int | None,
    bad: BadRows,
    format: str,
) -> Any:
    from danlu.tasks.spec import Spec

    return Spec.parse(
        task,
        train=train,
        dev=dev,
        test=test,
        model=model,
        tricks=split_commas(tricks),
        seed=seed,
        settings=settings or [],
        device=device.value,
        precision=precision.value,
        threads=threads,
        on_bad_rows=bad.value,
        format=format,
    )


def split_commas(values: list[str] | None) -> list[str]:
    """`--with a,b --with c` is a, b, c."""
    return [part.strip() for value in values or [] for part in value.split(",") if part.strip()]


def with_parts(settings: list[str] | None, attention: str | None, gelu: str | None) -> list[str]:
    """Settings with those that have an option of their own."""
    parts = {"attention": attention, "gelu": gelu}
    return [*(settings or []), *(f"{name}={value}" for name, value in parts.items() if value is not None)]


def train(
    task: Annotated[str, typer.Argument(help="classify, match, tag ... (`danlu list tasks`)", metavar="TASK")],
    train: Train,
    dev: Dev = None,
    test: Test = None,
    model: Model = "dgcnn",
    out: Out = None,
    with_: With = None,
    seed: Seed = 0,
    set_: Set = None,
    attention: Attention = None,
    gelu: Gelu = None,
    resume: Resume = False,
    overwrite: Overwrite = False,
    device: DeviceOption = Device.auto,
    precision: PrecisionOption = Precision.auto,
    threads: Threads = None,
    on_bad_rows: OnBadRows = BadRows.fail,
    format: Format = "auto",
    json: Json = False,
) -> None:
    """Train a model on your files; writes a model folder and a report page."""
    from danlu.cli.progress import Progress
    from danlu.cli.show import print_training
    from danlu.tasks.memory import keep_freed_memory
    from danlu.tasks.training import train_folder

    keep_freed_memory()
    set_ = with_parts(set_, attention, gelu)
    spec = _spec(task, train, dev, test, model, with_, seed, set_, device, precision, threads, on_bad_rows, format)
    target = out or Path(f"danlu-{task}")
    with Progress() as progress:
        record = train_folder(
            spec, target, command=command_line(), resume=resume, overwrite=overwrite, on_event=progress
        )
    if record is not None:  # None: another process of the same launch reports
        print_training(record, target, as_json=json)


def evaluate(
    folder: Annotated[Path, typer.Argument(help="model folder", metavar="DIR")],
    data: Annotated[str, typer.Option("--data", help="file or named set", metavar="FILE|NAME", show_default=False)],
    device: DeviceOption = Device.auto,
    precision: PrecisionOption = Precision.auto,
    threads: Threads = None,
    on_bad_rows: OnBadRows = BadRows.fail,
    format: Format = "auto",
    json: Json = False,
) -> None:
    """Score a trained model on a labelled file."""
    from danlu.cli.progress import Progress
    from danlu.cli.show import print_scores
    from danlu.tasks.trained import Trained

    trained = Trained.load(folder, device=device.value, precision=precision.value, threads=threads)
    with Progress() as progress:
        scores = trained.evaluate(data, on_bad_rows=on_bad_rows.value, format=format, on_event=progress)
    print_scores(scores, as_json=json)


def predict(
    folder: Annotated[Path, typer.Argument(help="model folder", metavar="DIR")],
    texts: Annotated[
        list[str] | None, typer.Argument(help="texts (of a pair: both); none reads --input", metavar="[TEXT ...]")
    ] = None,
    input: Annotated[
        str | None,
        typer.Option(
            "--input",
            help="one text a line (a pair: parted by a tab), or .jsonl, .tsv, .csv with columns; - is standard input",
            metavar="FILE|-",
        ),
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", help="task embed: file for the vectors, a row a text", metavar="FILE.npy")
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="one JSON object a line")] = False,
    device: DeviceOption = Device.auto,
    precision: PrecisionOption = Precision.auto,
    threads: Threads = None,
) -> None:
    """Use a trained model: one output line for every text, empty ones too."""
    from danlu.cli.show import print_predictions, print_vectors_file
    from danlu.data.errors import InputError
    from danlu.tasks.trained import Trained, check_vector_file

    if out is not None:
        check_vector_file(out)
    if texts and input:
        raise InputError("give texts or --input, not both")
    if not texts and input is None and sys.stdin.isatty():
        raise InputError("nothing to predict on: give texts, or --input FILE, or --input - to read standard input")
    trained = Trained.load(folder, device=device.value, precision=precision.value, threads=threads)
    given = texts if texts and texts != ["-"] else None
    items = trained.items(given, "-" if input is None else input)
    if out is not None:
        print_vectors_file(trained.write_vectors(items, out), as_json=json)
    else:
        print_predictions(trained.predict(items), trained.task.show, as_json=json)


def serve(
    folder: Annotated[Path, typer.Argument(help="model folder", metavar="DIR")],
    host: Annotated[str, typer.Option("--host", help="interface; any but this machine's own needs a token")] = (
        "127.0.0.1"
    ),
    port: Annotated[int, typer.Option("--port", min=0, max=65535, help="0 takes a free one")] = 8000,
    token_file: Annotated[
        Path | None,
        typer.Option("--token-file", help="token that requests must carry [default: $DANLU_TOKEN]", metavar="FILE"),
    ] = None,
    max_body: Annotated[int, typer.Option("--max-body", min=2, help="bytes of a request", metavar="BYTES")] = 1 << 20,
    max_items: Annotated[int, typer.Option("--max-items", min=1, help="items of a request", metavar="N")] = 128,
    max_text: Annotated[int, typer.Option("--max-text", min=1, help="characters of a text", metavar="CHARS")] = 10_000,
    max_batch: Annotated[int, typer.Option("--max-batch", min=1, help="items read together", metavar="N")] = 32,
    max_wait: Annotated[
        float, typer.Option("--max-wait", min=0, max=10_000, help="that an item may wait for company", metavar="MS")
    ] = 2.0,
    concurrency: Annotated[
        int, typer.Option("--concurrency", min=1, max=10_000, help="requests at a time; more get 429", metavar="N")
    ] = 16,
    timeout: Annotated[
        float, typer.Option("--timeout", min=0.1, max=86_400, help="seconds for a request", metavar="S")
    ] = 30.0,
    device: DeviceOption = Device.auto,
    precision: Annotated[
        Precision, typer.Option("--precision", help="fp32: the same answer in every batch; bf16: faster")
    ] = Precision.fp32,
    threads: Threads = None,
) -> None:
    """Serve a trained model over HTTP, with a page to try it."""
    from danlu.cli.serve import serve_folder

    serve_folder(
        folder, host=host, port=port, token_file=token_file, device=device.value, precision=precision.value,
        threads=threads, max_body=max_body, max_items=max_items, max_text=max_text, max_batch=max_batch,
        max_wait=max_wait / 1000, concurrency=concurrency, timeout=timeout,
    )  # fmt: skip


def ablate(
    task: Annotated[str, typer.Argument(help="classify, match, tag ... (`danlu list tasks`)", metavar="TASK")],
    train: Train,
    dev: Dev = None,
    test: Test = None,
    with_: Annotated[
        list[str] | None, typer.Option("--with", help="tricks to compare, comma-separated", metavar="TRICK[:VALUE],...")
    ] = None,
    seeds: Annotated[
        int, typer.Option("--seeds", min=1, max=1000, help="runs of every arm; 5 or more for a verdict worth having")
    ] = 5,
    model: Model = "dgcnn",
    out: Out = None,
    jobs: Annotated[int, typer.Option("--jobs", min=1, max=1024, help="trials at a time")] = 1,
    engine: Annotated[
        EngineName, typer.Option("--engine", help="ray: a local Ray, or the cluster that RAY_ADDRESS names")
    ] = EngineName.local,
    seed: Annotated[
        int, typer.Option("--seed", min=0, max=2**31 - 1, help="of the first run; the others count up")
    ] = 0,
    set_: Set = None,
    attention: Attention = None,
    gelu: Gelu = None,
    resume: Resume = False,
    overwrite: Overwrite = False,
    device: DeviceOption = Device.auto,
    precision: PrecisionOption = Precision.auto,
    threads: Threads = None,
    on_bad_rows: OnBadRows = BadRows.fail,
    format: Format = "auto",
    json: Json = False,
) -> None:
    """Which of these tricks helps on my data? Baseline, each trick alone, all together, over seeds."""
    from danlu.cli.progress import Progress
    from danlu.cli.show import print_ablation
    from danlu.data.errors import InputError
    from danlu.tasks.ablate import run_ablation
    from danlu.tasks.report import write_report

    tricks = split_commas(with_)
    if not tricks:
        raise InputError("nothing to compare: give tricks, for example --with fgm,ema; `danlu list tricks` shows them")
    set_ = with_parts(set_, attention, gelu)
    spec = _spec(task, train, dev, test, model, None, seed, set_, device, precision, threads, on_bad_rows, format)
    target = out or Path(f"danlu-ablate-{task}")
    with Progress() as progress:
        record = run_ablation(
            spec.to_json(), tricks, seeds, target, jobs=jobs, engine=engine.value, resume=resume, overwrite=overwrite,
            on_event=progress,
            command_line=command_line(), finish=lambda done, folder: write_report(done, folder) and None,
        )  # fmt: skip
    print_ablation(record, target, as_json=json)
    if record.get("failed"):
        raise typer.Exit(1)


def demo(
    out: Annotated[Path, typer.Option("--out", help="folder to write", metavar="DIR")] = Path("danlu-demo"),
    text: Annotated[str | None, typer.Option("--text", help="a sentence of your own to segment")] = None,
    overwrite: Overwrite = False,
    seed: Seed = 0,
    threads: Threads = None,
    quick: Annotated[
        bool, typer.Option("--quick", help="a minute instead of five: less text, the figures are lower")
    ] = False,
) -> None:
    """The whole story on embedded real text: train a Chinese word segmenter, compare three tricks, show a page."""
    from danlu.cli.progress import Progress
    from danlu.cli.show import print_demo
    from danlu.tasks.demo import run_demo
    from danlu.tasks.memory import keep_freed_memory

    keep_freed_memory()
    with Progress() as progress:
        record = run_demo(
            out,
            text=text,
            overwrite=overwrite,
            seed=seed,
            threads=threads,
            quick=quick,
            command=command_line(),
            on_event=progress,
        )
    print_demo(record, out)


def pretrain(
    objective: Annotated[Objective, typer.Argument(help="mlm: hidden words, lm: the next token", metavar="mlm|lm")],
    text: Annotated[
        list[str],
        typer.Option(
            "--text",
            help="text, one document a line, plain or .gz, - or mini-zh; repeatable",
            metavar="FILE",
            show_default=False,
        ),
    ],
    out: Annotated[Path, typer.Option("--out", help="folder to write", metavar="DIR", show_default=False)],
    dev: Annotated[
        list[str] | None, typer.Option("--dev", help="text that is only measured on", metavar="FILE")
    ] = None,
    model: Annotated[
        str, typer.Option("--model", help="family:LAYERSxWIDTH [default: bert:6x256, lm: gpt2:6x256]", metavar="M")
    ] = "",
    vocab: Annotated[
        Path | None, typer.Option("--vocab", help="vocab.txt [default: built from the text]", metavar="FILE")
    ] = None,
    vocab_size: Annotated[int, typer.Option("--vocab-size", min=1, help="tokens of a vocabulary that is built")] = 7500,
    segmenter: Annotated[
        Path | None,
        typer.Option("--segmenter", help="folder of `danlu train tag` that says where words begin", metavar="DIR"),
    ] = None,
    seed: Seed = 0,
    set_: Set = None,
    attention: Attention = None,
    gelu: Gelu = None,
    resume: Resume = False,
    overwrite: Overwrite = False,
    device: DeviceOption = Device.auto,
    precision: PrecisionOption = Precision.auto,
    threads: Threads = None,
    store: Annotated[Stored, typer.Option("--store", help="type of the stored weights")] = Stored.fp32,
    json: Json = False,
) -> None:
    """Pretrain an encoder (mlm) or a language model (lm) on plain text; writes a HuggingFace folder."""
    from danlu.cli.pretrain import PretrainProgress, check_files, print_pretraining
    from danlu.tasks.memory import keep_freed_memory
    from danlu.tasks.pretrain import pretrain as run_pretraining
    from danlu.tasks.pretrain_spec import PretrainSettings, PretrainSpec
    from danlu.tasks.spec import parse_settings

    keep_freed_memory()
    settings = PretrainSettings(**parse_settings(with_parts(set_, attention, gelu), PretrainSettings()))
    if not resume:
        check_files(text, "--text")
        check_files(dev or [], "--dev")
    spec = PretrainSpec(
        objective.value, tuple(text), tuple(dev or []), model, None if vocab is None else str(vocab), vocab_size,
        None if segmenter is None else str(segmenter), seed, settings, device.value, precision.value, threads,
        store.value,
    )  # fmt: skip
    with PretrainProgress() as progress:
        record = run_pretraining(
            spec, out, resume=resume, overwrite=overwrite, command=command_line(), on_event=progress
        )
    print_pretraining(record, out, as_json=json)
