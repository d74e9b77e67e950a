r"""Write texts: titles from abstracts, poems of a form, reviews of a sentiment, captions of a picture's vector.

Files (`danlu.data.pairs`): {source, target}, {target, condition} or {source, target, condition} as JSON Lines, CSV or
TSV. A model with one stack reads the source in both directions and the target from left to right (UniLM); T5 has a
stack for each. A condition, labels by name or a vector, shifts gain and bias of every norm, which start where the
pretrained model has them. Sources are written on by beam search, conditions alone by sampling.

Source: kexue.fm/archives/6933 (UniLM, titles), 7124 (conditions), 7259 (what to measure).
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from danlu.data.errors import InputError
from danlu.data.pairs import ONE_LABEL, Condition, Pair, read_condition, read_pairs
from danlu.tasks.encoder import Encoder, load_encoder
from danlu.tasks.folder import read_json
from danlu.tasks.generate_batches import PairRows, encode_sources, rows_of
from danlu.tasks.generate_conditions import describe_conditions
from danlu.tasks.generate_model import GenerateModel
from danlu.tasks.generate_scores import score_generation
from danlu.tasks.model_choice import Choice
from danlu.tasks.scores import Scores
from danlu.tasks.settings import Settings
from danlu.tasks.tricks import Plan

__all__ = ["GenerateSettings", "Task"]
NOTHING = Condition()
LEAST = 8  # tokens of a source, special ones included, that must have room


@dataclass(frozen=True)
class GenerateSettings(Settings):
    """Defaults of task generate."""

    batch_size: int = 16
    lr: float = 5e-4
    max_len: int = 336  # tokens of source and target together (T5: of the source); longer sources are cut, and counted
    max_target: int = 80  # tokens of a target, its end included; longer ones are cut, and counted
    dropout: float = 0.1
    eval_rows: int = 200  # examples that texts are written for when scoring
    decode: str = "auto"  # "beam", "sample", or "auto": beam where there are sources
    beam: int = 3  # prefixes that beam search follows; 1 is greedy
    length_penalty: float = 1.0  # 0 compares log-probabilities of texts, 1 their means over tokens
    temperature: float = 1.0  # of sampling
    top_p: float = 0.95  # of sampling; 1 draws from all tokens
    condition_size: int = 64  # numbers of the condition vector
    combine: str = "sum"  # several labels: "sum" of their vectors, or "concat", side by side
    condition_min_count: int = 1  # rarer labels share a vector, and so do unknown ones (1: these are refused)
    judge_rows: int = 30  # texts for each label that a judge is asked about


class Task:
    """generate: see the module."""

    name = "generate"
    metric = "score"
    defaults = GenerateSettings()
    fields = ("text",)

    def read(self, source: Any, *, on_bad_rows: str = "fail", format: str = "auto", scheme: str = "") -> Any:
        """Examples of a file; texts have no scheme."""
        return read_pairs(source, on_bad_rows=on_bad_rows, format=format)

    def build(
        self, examples: Sequence[Pair], scheme: str, choice: Choice, settings: GenerateSettings, plan: Plan
    ) -> GenerateModel:
        """A model for these training examples.

        Raises:
            InputError: the model is no transformer, or has no room for source and target.
        """
        described = describe_conditions(
            examples, settings.condition_size, settings.combine, settings.condition_min_count
        )
        changes: dict[str, Any] = {} if described is None else {"condition_size": settings.condition_size}
        two_stacks = _two_stacks(choice.path)
        if not two_stacks:
            changes["application"] = "unilm"
        encoder = choice.encoder(settings, **changes)
        reads = bool(examples[0].source)
        method = settings.decode if settings.decode != "auto" else "beam" if reads else "sample"
        config = {
            "two_stacks": two_stacks,
            "max_len": _room(encoder, settings, two_stacks),
            "max_target": settings.max_target,
            "source": reads,
            "condition": described,
            "decoding": {
                "method": method,
                "beam": settings.beam,
                "length_penalty": settings.length_penalty,
                "temperature": settings.temperature,
                "top_p": settings.top_p,
                "seed": 0,
            },
            "eval_rows": settings.eval_rows,
            "judge_rows": settings.judge_rows,
        }
        model = GenerateModel(encoder, config)
        if model.conditions is not None:
            model.conditions.measure(examples)
        model.replacement = plan.token_replacement
        return model

    def unusable(self, model: GenerateModel, examples: Sequence[Pair]) -> dict[int, str]:
        """Index -> reason for examples of another form than the model's."""
        found = {}
        for i, example in enumerate(examples):
            reason = _fault(model, example.condition)
            if bool(example.source) != model.config["source"]:
                reason = "the model writes from a source" if model.config["source"] else "the model takes no source"
            if reason:
                found[i] = reason
        return found

    def training_set(self, model: GenerateModel, examples: Sequence[Pair]) -> PairRows:
        """Numbered pairs; the model remembers the texts for a judge."""
        model.real = examples
        return PairRows(model, rows_of(model, examples), corrupt=True)

    def notes(self, items: PairRows) -> list[str]:
        """How many sources and targets of the training part were cut."""
        limits = {"source": items.model.source_room, "target": items.model.config["max_target"]}
        counts = {"source": sum(r.source_cut for r in items.rows), "target": sum(r.target_cut for r in items.rows)}
        setting = {"source": "max_len", "target": "max_target"}
        return [
            f"{count:,} of {len(items.rows):,} training {name}s were cut at {limits[name]} tokens "
            f"(--set {setting[name]}= changes that)"
            for name, count in counts.items()
            if count
        ]

    def evaluate(self, model: GenerateModel, examples: Sequence[Pair], details: bool = False) -> Scores:
        """Loss, likeness to the references; with details repetition, exposure bias, control, samples."""
        return score_generation(model, examples, details)

    def predict(self, model: GenerateModel, items: Sequence[Any]) -> list[dict[str, Any]]:
        """A text for each item; the same one alone and in a batch. What cannot be followed says so under "error".

        Args:
            model: of `build` or `load`.
            items: texts, read as sources, or as labels where the model has one label and no source; objects with
                "source", "condition" and "seed", also as JSON in a text where the model follows a condition.
        """
        asked = [_understood(model, item) for item in items]
        wanted = [i for i, ask in enumerate(asked) if ask.source.strip() or ask.condition]
        encoded = encode_sources(model, [asked[i].source for i in wanted])
        seeds = [repr(asked[i]) for i in wanted]
        written = model.write([ids for ids, _ in encoded], [asked[i].condition for i in wanted], seeds)
        results: list[dict[str, Any]] = [
            {"text": ask.source or str(ask.condition), "generated": "", "score": None, "complete": None}
            | ({"condition": str(ask.condition)} if ask.condition.labels else {})
            | ({"text": ask.given, "error": ask.error} if ask.error else {})
            for ask in asked
        ]
        for i, (ids, score, complete) in zip(wanted, written, strict=True):
            results[i] |= {"generated": model.text(ids), "score": round(score, 4), "complete": complete}
        return results

    def show(self, prediction: dict[str, Any]) -> str:
        """A prediction as one line of plain text."""
        if "error" in prediction:
            return f"error: {prediction['error']}"
        return " ".join(prediction["generated"].split())

    def save(self, model: GenerateModel, folder: Path) -> dict[str, Any]:
        """What task.json needs to build the model again; "decoding" there may be changed by hand."""
        return {"config": model.config}

    def load(self, folder: Path, stored: dict[str, Any]) -> GenerateModel:
        """The model of a folder; its encoder holds its weights."""
        try:
            config = stored["config"]
            changes = {} if config["two_stacks"] else {"application": "unilm"}
            return GenerateModel(load_encoder(folder, **changes), config)
        except (KeyError, TypeError) as error:
            raise InputError(f"{folder}/task.json lacks {error}; restore it from a copy or train again") from None


def _two_stacks(path: Path | None) -> bool:
    """Whether a stored model is a T5."""
    if path is None or not (path / "config.json").is_file():
        return False
    config = read_json(path / "config.json")
    return bool(config.get("is_encoder_decoder")) or "t5" in str(config.get("model_type"))


def _room(encoder: Encoder, settings: GenerateSettings, two_stacks: bool) -> int:
    """Tokens of source and target together that the model has positions for."""
    room = encoder.room(settings.max_len)
    if not two_stacks and room < settings.max_target + LEAST:
        why = "" if room == settings.max_len else f" (the model has {room} positions)"
        raise InputError(
            f"max_len {room}{why} leaves no room for a source beside a target of max_target {settings.max_target}; "
            f"lower --set max_target to {max(2, room - LEAST)} or less"
        )
    return room


def _fault(model: GenerateModel, condition: Condition) -> str:
    """Why the model cannot follow a condition; "" if it can."""
    if model.conditions is None:
        return "the model follows no condition" if condition else ""
    return model.conditions.fault(condition)


@dataclass(frozen=True)
class Ask:
    """One item of `predict`, or why it is none."""

    source: str = ""
    condition: Condition = NOTHING
    seed: str = "0"
    given: str = ""
    error: str = ""


def _understood(model: GenerateModel, item: Any) -> Ask:
    """An item taken apart; one that cannot be followed must not spoil those beside it."""
    try:
        return _asked(model, _from_text(model, item) if isinstance(item, str) else item)
    except InputError as error:
        given = item if isinstance(item, str) else json.dumps(item, ensure_ascii=False, default=str)
        return Ask(given=given[:200], error=str(error))


def _asked(model: GenerateModel, item: dict[str, Any]) -> Ask:
    names = list(model.conditions.fields) if model.conditions is not None else []
    source = item.get("source", item.get("text", ""))
    if not isinstance(source, str):
        raise InputError(f"source: expected a text, got {type(source).__name__}")
    value = item.get(ONE_LABEL)
    if value is None and names and all(name in item for name in names):
        value = {name: item[name] for name in names}
    condition = NOTHING if value is None else read_condition(value)
    if not source.strip() and not condition:
        return Ask()  # an empty text has an empty answer
    if source.strip() and not model.config["source"]:
        raise InputError(f"this model takes no source; write for example {_example(model)}")
    if reason := _fault(model, condition):
        raise InputError(f"condition {str(condition) or 'missing'}: {reason}")
    return Ask(source, condition, str(item.get("seed", 0)))


def _from_text(model: GenerateModel, text: str) -> dict[str, Any]:
    """The item that a plain text stands for."""
    if model.conditions is None or not text.strip():
        return {"source": text}
    if text.lstrip().startswith(("{", "[")):
        try:
            value = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise InputError(f"not JSON: {error}; write for example {_example(model)}") from None
        return value if isinstance(value, dict) else {ONE_LABEL: value}
    if len(model.conditions.fields) == 1 and not model.config["source"]:
        return {next(iter(model.conditions.fields)): text.strip()}
    raise InputError(f"this model follows a condition, so a text alone is not enough; write {_example(model)}")


def _example(model: GenerateModel) -> str:
    """An item of the form that the model takes."""
    fields = model.conditions.fields if model.conditions is not None else {}
    condition: Any = {name: labels[-1] for name, labels in fields.items()} or [0.5, "..."]
    return json.dumps({**({"source": "..."} if model.config["source"] else {}), ONE_LABEL: condition},
                      ensure_ascii=False)  # fmt: skip
