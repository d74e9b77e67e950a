r"""The loop of pretraining: masked words (mlm) or the next token (lm), exactly resumable.

A row is [CLS] w_1 ... [SEP] (for lm [CLS] w_1 ...), a window of `danlu.data.corpus`; all rows of a step are equally
long, so nothing is padded. Every step t knows from t alone what it reads and which words it hides:

    step t is long (rows of long_length)   <=>   floor((t + 1) q) > floor(t q),      q = long_share          (1)
    rate(t) = lr * (rises over warmup_steps; 1; falls linearly to 0 over the last `decay` of the steps)       (2)
    loss(t) = sum over hidden (or following) tokens of -log p(token) / their number in the step               (3)

so the state on disk holds weights, optimizer, random streams and t, and a run that was killed ends in the same bits.
While (2) is constant `steps` may be changed on resuming: nothing before the decline depends on it.

Source: Devlin et al., 2018, arXiv:1810.04805; Cui et al., 2019, arXiv:1906.08101 (whole words); Hu et al., 2024,
arXiv:2404.06395 (eq. (2), warm-up, stable, decay).
Shapes: B rows, T tokens of a row, M hidden tokens, V tokens of the vocabulary.
"""

import dataclasses
import json
import math
import re
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from danlu.data.atomic import write_whole
from danlu.data.corpus import TokenCorpus, Windows
from danlu.data.errors import WorkError
from danlu.optim import param_groups, piecewise_linear
from danlu.tasks.optimizers import BETAS
from danlu.tasks.pretrain_spec import PretrainSettings, PretrainSpec
from danlu.tasks.state import FitResult, TrainingState
from danlu.text import Tokenizer, Transformer
from danlu.text.masking import mask_words

__all__ = ["Rows", "evaluate", "evaluation_rows", "hide", "log_lines", "special_ids", "train"]
EVALUATED = 65_536  # tokens of --dev that are looked at
Tell = Callable[[dict[str, Any]], None]


class Rows:
    """The rows of every step, a function of the step alone."""

    def __init__(self, corpus: TokenCorpus, tokenizer: Tokenizer, spec: PretrainSpec) -> None:
        self.corpus, self.spec, self.settings = corpus, spec, spec.settings
        assert tokenizer.start_id is not None and tokenizer.end_id is not None
        self.start, self.end = tokenizer.start_id, tokenizer.end_id
        self.closed = spec.kind == "mlm"
        self._windows: dict[int, tuple[int, Windows]] = {}

    def at(self, step: int) -> tuple[Tensor, Tensor]:
        """ids (B, T) int64 and begins (B, T) bool of a step."""
        share = self.settings.long_share
        before = math.floor(step * share)
        is_long = math.floor((step + 1) * share) > before  # eq. (1)
        length = self.settings.long_length if is_long else self.settings.length
        count = max(1, self.settings.batch_tokens // length)
        return self.rows(length, count, before if is_long else step - before)

    def rows(self, length: int, count: int, turn: int) -> tuple[Tensor, Tensor]:
        """The turn-th `count` rows of a length."""
        inner = length - 1 - self.closed
        epoch, windows = self._windows.get(length) or (0, Windows(self.corpus, inner, self.end, self.spec.seed, 0))
        # the shift makes epochs unlike by one window; a turn counts in the number that every epoch has
        least = (self.corpus.tokens + len(self.corpus)) // inner - 1
        count = max(1, min(count, least))
        turns = max(1, least // count)
        wanted = turn // turns
        if wanted != epoch:
            epoch, windows = wanted, Windows(self.corpus, inner, self.end, self.spec.seed, wanted)
        self._windows[length] = (epoch, windows)
        first = turn % turns * count
        ids, begins = windows.take(np.arange(first, min(first + count, len(windows))))
        left = np.full((len(ids), 1), self.start)
        right = np.full((len(ids), int(self.closed)), self.end)
        marks = np.ones_like(left, bool), np.ones_like(right, bool)
        return (
            torch.from_numpy(np.concatenate([left, ids, right], 1)),
            torch.from_numpy(np.concatenate([marks[0], begins, marks[1]], 1)),
        )


def hide(
    ids: Tensor, begins: Tensor, spec: PretrainSpec, tokenizer: Tokenizer, seed: int
) -> tuple[Tensor, Tensor, Tensor]:
    """What a model is asked about a batch.

    Args:
        ids: (B, T).
        begins: (B, T) bool, where words begin.
        spec: kind and share.
        tokenizer: of the run.
        seed: of the choice.

    Returns:
        (ids as the model sees them, (B, T) bool where it is asked, ids of the answers (B, T)).
    """
    if spec.kind == "lm":
        asked = torch.ones_like(ids, dtype=torch.bool)
        asked[:, -1] = False
        return ids, asked, ids.roll(-1, 1)
    assert tokenizer.mask_id is not None
    seen, asked = mask_words(
        ids, begins, mask_id=tokenizer.mask_id, special=special_ids(tokenizer), vocab_size=tokenizer.vocab_size,
        share=spec.settings.mask_share, generator=torch.Generator().manual_seed(seed),
    )  # fmt: skip
    return seen, asked, ids


def special_ids(tokenizer: Tokenizer) -> Tensor:
    """Ids of [PAD], [CLS] and all others in brackets."""
    return torch.tensor([n for token, n in tokenizer.vocab.items() if re.fullmatch(r"\[.+\]", token)])


def _losses(
    model: Transformer, ids: Tensor, begins: Tensor, spec: PretrainSpec, tokenizer: Tokenizer, seed: int, device: Any
) -> Iterator[tuple[Tensor, Tensor, int]]:
    """(sum of the losses, number of right answers, targets of the whole batch) of each part of a batch, eq. (3)."""
    seen, asked, answers = hide(ids, begins, spec, tokenizer, seed)
    total = int(asked.sum())
    step = max(1, spec.settings.part_tokens // ids.shape[1])
    for rows in range(0, len(ids), step):
        part = slice(rows, rows + step)
        chosen = asked[part]
        if not chosen.any():
            continue
        logits = model(seen[part].to(device), logits_at=chosen.to(device)).logits.float()  # (M, V)
        target = answers[part][chosen].to(device)
        loss = F.cross_entropy(logits, target, reduction="sum")
        yield loss, (logits.detach().argmax(-1) == target).sum(), total


def train(
    spec: PretrainSpec, model: Transformer, corpora: Mapping[str, TokenCorpus], tokenizer: Tokenizer, engine: Any,
    work: Path, on_event: Tell,
) -> FitResult:  # fmt: skip
    """Train the model in place, from the newest state of the work folder if there is one.

    Args:
        spec: the run.
        model: with its fresh weights.
        corpora: "train", and "dev" to look at.
        tokenizer: of the run.
        engine: an Accelerator: device and precision.
        work: folder whose state/ is read and written.
        on_event: is told of steps, losses and scores.

    Returns:
        Steps, seconds and the log.

    Raises:
        WorkError: the loss is not finite, or the process was told to stop (the state is saved).
    """
    s = spec.settings
    optimizer = torch.optim.AdamW(
        param_groups(model, s.lr, weight_decay=s.weight_decay), lr=s.lr, betas=BETAS,
        fused=engine.device.type in ("cpu", "cuda"),
    )  # fmt: skip
    stored, result = TrainingState(model, [optimizer], None, engine), FitResult()
    position = stored.load(work / "state", result)
    if position:
        on_event({"event": "phase", "text": f"going on from step {position:,} of {s.steps:,}"})
    points = {0: 0.0 if s.warmup_steps else 1.0, min(s.warmup_steps, s.steps): 1.0, s.declines_from: 1.0}
    schedule = piecewise_linear(points | ({s.steps + 1: 0.0} if s.declines_from < s.steps else {}))  # eq. (2)
    rows = Rows(corpora["train"], tokenizer, spec)
    rows.rows(s.length, 1, 0)  # too little text is told now
    if s.long_share:
        rows.rows(s.long_length, 1, 0)
    began, before, saved = time.monotonic(), result.seconds, time.monotonic()
    tokens = _tokens_before(position, s)
    loss_sum, right, asked, logged = 0.0, 0, 0, (time.monotonic(), tokens)
    model.train()
    with _told_to_stop() as stop:
        for step in range(position, s.steps):
            for group in optimizer.param_groups:
                group["lr"] = s.lr * schedule(step + 1)
            ids, begins = rows.at(step)
            optimizer.zero_grad(set_to_none=True)
            seed = spec.seed * 1_000_003 + step
            with engine.autocast():
                for loss, hits, total in _losses(model, ids, begins, spec, tokenizer, seed, engine.device):
                    (loss / total).backward()
                    loss_sum, right = loss_sum + loss.detach(), right + hits
            asked += total
            if s.clip:
                torch.nn.utils.clip_grad_norm_(model.parameters(), s.clip)
            optimizer.step()
            tokens += ids.numel()
            result.steps = step + 1
            result.seconds = before + time.monotonic() - began
            on_event({"event": "step", "step": step + 1, "total": s.steps})
            last = step + 1 == s.steps
            if (step + 1) % s.log_every == 0 or last:
                mean = float(loss_sum) / max(1, asked)
                if not math.isfinite(mean):
                    raise WorkError(
                        f"the loss became {mean} before step {step + 1}; lower the rate with --set lr={s.lr / 3:.1g}; "
                        "--resume goes on from the last state"
                    )
                now = time.monotonic()
                speed = (tokens - logged[1]) / max(1e-9, now - logged[0])
                logged = (now, tokens)
                result.log.append({
                    "step": step + 1, "loss": mean, "accuracy": float(right) / max(1, asked),
                    "lr": s.lr * schedule(step + 1), "tokens": tokens, "seconds": round(result.seconds, 1),
                    "tokens_per_second": round(speed),
                })  # fmt: skip
                on_event(
                    {"event": "loss", "total": s.steps, "epoch": tokens / corpora["train"].tokens} | result.log[-1]
                )
                loss_sum, right, asked = 0.0, 0, 0
            if "dev" in corpora and ((step + 1) % s.eval_every == 0 or last):
                scores = evaluate(model, corpora["dev"], tokenizer, spec, engine)
                result.log.append({"step": step + 1, "tokens": tokens, "held_out": scores})
                on_event({"event": "held_out", **result.log[-1]})
            if stop or (time.monotonic() - saved > s.save_every and not last):
                result.seconds = before + time.monotonic() - began
                stored.save(work / "state", result)
                write_whole(work / "log.jsonl", log_lines(result))
                saved = time.monotonic()
            if stop and not last:
                raise WorkError(
                    f"stopped at step {step + 1:,} of {s.steps:,}; the state is saved, the same command with --resume "
                    "goes on"
                )
    model.eval()
    return result


def _tokens_before(position: int, settings: PretrainSettings) -> int:
    """Tokens of the steps before one, by eq. (1)."""
    long = math.floor(position * settings.long_share)
    return sum(
        count * (max(1, settings.batch_tokens // length) * length)
        for count, length in ((position - long, settings.length), (long, settings.long_length))
    )


def log_lines(result: FitResult) -> bytes:
    """The log as JSON Lines."""
    return "".join(json.dumps(entry) + "\n" for entry in result.log).encode()


def evaluation_rows(corpus: TokenCorpus, tokenizer: Tokenizer, spec: PretrainSpec) -> tuple[Tensor, Tensor]:
    """Rows of up to 65,536 tokens, the same every time.

    Args:
        corpus: of text that is not trained on.
        tokenizer: of the run.
        spec: kind and length.

    Returns:
        (ids (B, T), begins (B, T)).
    """
    length = max(4, min(spec.settings.length, (corpus.tokens + len(corpus)) // 2))
    rows = Rows(corpus, tokenizer, dataclasses.replace(spec, seed=0))
    return rows.rows(length, max(1, EVALUATED // length), 0)


@torch.no_grad()
def evaluate(
    model: Transformer, corpus: TokenCorpus, tokenizer: Tokenizer, spec: PretrainSpec, engine: Any | None
) -> dict[str, float]:
    """Accuracy and loss on `evaluation_rows`, with the same words hidden every time.

    Args:
        model: to be scored; left in the mode it is in.
        corpus: of text it never saw.
        tokenizer: of the run.
        spec: kind, length and share of hidden tokens.
        engine: device and precision; None: the model's device, float32.

    Returns:
        {"accuracy", "loss" (nats a token), "tokens" asked for}.
    """
    ids, begins = evaluation_rows(corpus, tokenizer, spec)
    training, device = model.training, next(model.parameters()).device
    model.eval()
    loss_sum, right, asked = 0.0, 0, 1
    with nullcontext() if engine is None else engine.autocast():
        for loss, hits, total in _losses(model, ids, begins, spec, tokenizer, 0, device):
            loss_sum, right, asked = loss_sum + float(loss), right + int(hits), total
    model.train(training)
    return {"accuracy": right / asked, "loss": loss_sum / asked, "tokens": asked}


@contextmanager
def _told_to_stop() -> Iterator[list[int]]:
    """A list that is filled when the process is asked to end (SIGTERM, Ctrl-C); a second Ctrl-C ends it at once."""
    told: list[int] = []

    def tell(number: int, frame: Any) -> None:
        if told and number == signal.SIGINT:
            raise KeyboardInterrupt
        told.append(number)

    if threading.current_thread() is not threading.main_thread():
        yield told
        return
    old = {number: signal.signal(number, tell) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield told
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)
