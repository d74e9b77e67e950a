"""The tricks one can switch on with `--with NAME[:VALUE]`: each a few lines that set a `Plan`, all work is below.

Every public function of this file is a trick: its first docstring line says what it does, the labelled lines say which
slot it fills (two of one slot exclude each other), what it costs and which tasks it fits. Functions of `danlu.train`,
`danlu.optim`, `danlu.losses` and `danlu.nn` hold the methods themselves.
"""

import difflib
import inspect
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from danlu.data.errors import InputError

__all__ = [
    "adafactor",
    "condition_lr",
    "constraints",
    "crf_lr",
    "egdd",
    "ema",
    "fgm",
    "flatnce",
    "gp",
    "head",
    "layer_decay",
    "mixup",
    "noise",
    "pgd",
    "rdrop",
    "soft_accuracy",
    "soft_f1",
    "token_replacement",
    "vat",
    "whitening",
]
HEADS = {"tag": ("softmax", "memm", "bimemm", "crf", "global_pointer"), "triples": ("gplinker", "casrel")}  # by task


@dataclass(frozen=True)
class Plan:
    """What the switched-on tricks ask of the loop and of the model; the default is the plain run."""

    attack: str | None = None  # "fgm", "pgd", "noise", "gp" or "vat": how the backward pass is made
    epsilon: float = 0.0  # L2 length of the attack on the embedding table, or weight of the penalty
    objective: tuple[str, float] | None = None  # "rdrop" or "mixup" and its alpha, in place of plain cross-entropy
    optimizer: tuple[str, float] | None = None  # "adafactor" or "egdd" and its rate, in place of AdamW
    ema: float | None = None  # decay of the averaged weights that are evaluated and kept
    lr_rules: tuple[tuple[str, float], ...] = ()  # name pattern -> factor on the learning rate
    layer_decay: float | None = None  # factor on the rate of a transformer's layer, for each layer above it
    head: str | None = None  # tagging head instead of the task's default
    constraints: bool = False  # illegal transitions excluded
    metric_loss: str | None = None  # "f1" or "accuracy": fine-tune on the soft metric after cross-entropy
    metric_loss_from: float = 0.7  # share of the steps after which the soft metric takes over
    token_replacement: float | None = None  # share of target inputs exchanged in half of the sequences
    contrast: str | None = None  # "flatnce" in place of InfoNCE
    whitening: int | None = None  # features that whitening after training keeps, 0: all


def fgm(plan: Plan, epsilon: float = 0.5) -> Plan:
    """Train on the loss at embeddings moved by epsilon along their gradient.

    Slot    attack
    Cost    1.7 x time
    Tasks   tag classify generate triples read match embed
    Source  kexue.fm/archives/7234
    """
    return replace(plan, attack="fgm", epsilon=positive("epsilon", epsilon))


def pgd(plan: Plan, epsilon: float = 1.0) -> Plan:
    """Train on the loss at the end of three projected gradient steps on the embeddings, radius epsilon.

    Slot    attack
    Cost    3.2 x time
    Tasks   tag classify generate triples read match embed
    Source  kexue.fm/archives/7234; Madry et al., arXiv:1706.06083
    """
    return replace(plan, attack="pgd", epsilon=positive("epsilon", epsilon))


def noise(plan: Plan, epsilon: float = 0.5) -> Plan:
    """Control for fgm: the embeddings are moved just as far, in a random direction.

    Slot    attack
    Cost    1.7 x time
    Tasks   tag classify generate triples read match embed
    Source  kexue.fm/archives/7466
    """
    return replace(plan, attack="noise", epsilon=positive("epsilon", epsilon))


def gp(plan: Plan, weight: float = 1.0) -> Plan:
    """Add half the squared norm of the loss's gradient at the embeddings, times a weight, to the loss.

    Slot    attack
    Cost    2.0 x time
    Tasks   classify match
    Source  kexue.fm/archives/7234
    """
    return replace(plan, attack="gp", epsilon=positive("weight", weight))


def vat(plan: Plan, epsilon: float = 1.0) -> Plan:
    """Ask that the prediction stays when the embedding table moves by epsilon in the worst direction.

    Slot    attack
    Cost    3.2 x time
    Tasks   classify match
    Source  kexue.fm/archives/7466; Miyato et al., arXiv:1704.03976
    """
    return replace(plan, attack="vat", epsilon=positive("epsilon", epsilon))


def rdrop(plan: Plan, alpha: float = 4.0) -> Plan:
    """Read every text with two draws of dropout and ask that both predictions agree.

    Slot    objective
    Cost    1.9 x time
    Tasks   classify match
    Source  kexue.fm/archives/8496; Liang et al., arXiv:2106.14448
    """
    return replace(plan, objective=("rdrop", positive("alpha", alpha)))


def mixup(plan: Plan, alpha: float = 0.2) -> Plan:
    """Train on straight lines between the vectors of two texts and between their classes.

    Slot    objective
    Cost    1.0 x time
    Tasks   classify match
    Source  kexue.fm/archives/5693; Zhang et al., arXiv:1710.09412
    """
    return replace(plan, objective=("mixup", positive("alpha", alpha)))


def adafactor(plan: Plan, lr: float = 0.02) -> Plan:
    """Adafactor in place of AdamW: hardly any state; its rate is relative to the size of each matrix.

    Slot    optimizer
    Cost    1.2 x time
    Tasks   tag classify match triples read generate embed
    Source  kexue.fm/archives/7302; Shazeer and Stern, arXiv:1804.04235
    """
    return replace(plan, optimizer=("adafactor", positive("lr", lr)))


def egdd(plan: Plan, lr: float = 0.5) -> Plan:
    """Momentum that learns a step size for each weight, in place of AdamW.

    Slot    optimizer
    Cost    1.0 x time
    Tasks   tag classify match triples read generate embed
    Source  kexue.fm/archives/8968; Amid et al., arXiv:2202.00145
    """
    return replace(plan, optimizer=("egdd", positive("lr", lr)))


def ema(plan: Plan, decay: float = 0.999) -> Plan:
    """Evaluate and keep an exponential moving average of the weights.

    Slot    average
    Cost    1.05 x time
    Tasks   tag classify generate triples read match embed
    Source  kexue.fm/archives/6575
    """
    if not 0 < decay < 1:
        raise InputError(
            f"ema needs a decay between 0 and 1, got {decay:g}; ema:0.999 is usual, a short run wants ema:0.99"
        )
    return replace(plan, ema=decay)


def crf_lr(plan: Plan, factor: float = 100.0) -> Plan:
    """Give the transition scores of the CRF or MEMM head their own, larger learning rate.

    Slot    transition rate
    Cost    1.0 x time
    Tasks   tag
    Source  kexue.fm/archives/7196
    """
    return replace(plan, lr_rules=((r"^head\.", positive("factor", factor)), *plan.lr_rules))


def condition_lr(plan: Plan, factor: float = 10.0) -> Plan:
    """Give the vectors of conditions, and what makes norms follow them, their own, larger learning rate.

    Slot    condition rate
    Cost    1.0 x time
    Tasks   generate triples
    Source  kexue.fm/archives/7124
    """
    rule = (r"(^conditions\.|\.cond_)", positive("factor", factor))
    return replace(plan, lr_rules=(rule, *plan.lr_rules))


def head(plan: Plan, kind: str = "crf") -> Plan:
    """Another output layer: softmax, memm, bimemm or crf to tag with, gplinker or casrel to find triples with.

    Slot    head
    Cost    0.8 to 1.0 x time
    Tasks   tag triples
    Source  kexue.fm/archives/7213, 5542, 8888, 7161
    """
    _one_of_heads(kind, [name for names in HEADS.values() for name in names])
    return replace(plan, head=kind)


def layer_decay(plan: Plan, rate: float = 0.9) -> Plan:
    """Let the layers of a transformer learn more slowly the lower they stand, the embeddings slowest.

    Slot    layer rates
    Cost    1.0 x time
    Tasks   tag classify match triples embed
    Source  Clark et al., arXiv:2003.10555
    """
    if not 0 < rate <= 1:
        raise InputError(f"layer_decay takes a factor in (0, 1], got {rate:g}; usual are 0.8 to 0.95")
    return replace(plan, layer_decay=rate)


def constraints(plan: Plan) -> Plan:
    """Exclude tag sequences that the scheme forbids, in training (CRF) and in decoding (every head).

    Slot    constraints
    Cost    1.0 x time
    Tasks   tag
    Source  kexue.fm/archives/7196
    """
    return replace(plan, constraints=True)


def soft_f1(plan: Plan, start: float = 0.7) -> Plan:
    """After that share of the steps, train on the soft macro F1 instead of the cross-entropy.

    Slot    loss
    Cost    1.0 x time
    Tasks   classify match
    Source  kexue.fm/archives/6620
    """
    return replace(plan, metric_loss="f1", metric_loss_from=share("start", start))


def soft_accuracy(plan: Plan, start: float = 0.7) -> Plan:
    """After that share of the steps, train on the soft accuracy instead of the cross-entropy.

    Slot    loss
    Cost    1.0 x time
    Tasks   classify match
    Source  kexue.fm/archives/6620
    """
    return replace(plan, metric_loss="accuracy", metric_loss_from=share("start", start))


def token_replacement(plan: Plan, rate: float = 0.3) -> Plan:
    """In half of the texts exchange that share of the words that the decoder reads for others of the same text.

    Slot    decoder inputs
    Cost    1.0 x time
    Tasks   generate
    Source  kexue.fm/archives/7259
    """
    if not 0 < rate <= 1:
        raise InputError(f"token_replacement takes a share above 0 and up to 1, got {rate:g}; 0.3 is the source's")
    return replace(plan, token_replacement=rate)


def flatnce(plan: Plan) -> Plan:
    """FlatNCE in place of InfoNCE: an anchor that is solved already pulls as hard as any other.

    Slot    contrastive loss
    Cost    1.0 x time
    Tasks   embed
    Source  kexue.fm/archives/8586; Chen et al., arXiv:2107.01152
    """
    return replace(plan, contrast="flatnce")


def whitening(plan: Plan, dim: int = 0) -> Plan:
    """Whiten the trained vectors by those of the training texts, keeping the first dim directions (0: all).

    Slot    vectors
    Cost    1.0 x time
    Tasks   embed
    Source  kexue.fm/archives/8069; Su et al., arXiv:2103.15316
    """
    if dim < 0:
        raise InputError(f"whitening keeps a number of directions, or 0 for all, got {dim}; for example whitening:256")
    return replace(plan, whitening=dim)


@dataclass(frozen=True)
class Trick:
    """One `NAME[:VALUE]` of the command line, understood."""

    text: str
    name: str
    slot: str
    tasks: tuple[str, ...]
    cost: str
    apply: Callable[[Plan], Plan]


def parse(text: str, task: str | None = None) -> Trick:
    """Read NAME or NAME:VALUE; with a task, refuse a trick that does not fit it.

    Raises:
        InputError: the name is unknown (nearest names are given), the value does not fit, the task does not take it.
    """
    name, colon, value = (part.strip() for part in text.partition(":"))
    name = name.lower()
    if name not in __all__:
        raise InputError(
            f"unknown trick {name!r}{did_you_mean(name, __all__)}; `danlu list tricks` shows all: {', '.join(__all__)}"
        )
    function: Callable[..., Plan] = globals()[name]
    parameters = list(inspect.signature(function).parameters.values())[1:]
    arguments: list[float | str] = []
    if colon:
        if not parameters:
            raise InputError(f"trick {name} takes no value, got {text!r}; write --with {name}")
        kind = parameters[0].annotation
        try:
            arguments.append(kind(value))
        except ValueError:
            raise InputError(
                f"trick {name} takes a number ({parameters[0].name}), got {value!r}; "
                f"write for example --with {name}:{parameters[0].default}"
            ) from None
        if isinstance(arguments[0], float) and not math.isfinite(arguments[0]):
            raise InputError(f"trick {name} takes a finite number ({parameters[0].name}), got {value!r}")
    card = describe(function)
    if task is not None and task not in card["tasks"].split():
        raise InputError(
            f"trick {name} fits {' and '.join(card['tasks'].split())}, not {task}; `danlu list tricks` shows what fits"
        )
    if name == "head" and task in HEADS:
        _one_of_heads(value if colon else str(parameters[0].default), HEADS[task])
    trick = Trick(
        f"{name}{colon}{value}",
        name,
        card["slot"],
        tuple(card["tasks"].split()),
        card["cost"],
        lambda plan: function(plan, *arguments),
    )
    trick.apply(Plan())  # a bad value is told now, not when training begins
    return trick


def parse_all(texts: Sequence[str], task: str) -> tuple[list[Trick], Plan]:
    """Read several tricks and set one plan; two that fill the same slot are refused."""
    tricks = [parse(text, task) for text in texts]
    plan, slots = Plan(), dict[str, str]()
    for trick in tricks:
        if trick.slot in slots:
            raise InputError(f"tricks {slots[trick.slot]} and {trick.text} both set the {trick.slot}; give one of them")
        slots[trick.slot] = trick.text
        plan = trick.apply(plan)
    return tricks, plan


def describe(function: Callable[..., Plan]) -> dict[str, str]:
    """The labelled lines of a trick's docstring: slot, cost, tasks, source, and its first line as `claim`."""
    lines = (inspect.getdoc(function) or "").splitlines()
    card = {"claim": lines[0]}
    for line in lines[1:]:
        label, _, rest = line.strip().partition(" ")
        if label in ("Slot", "Cost", "Tasks", "Source"):
            card[label.lower()] = rest.strip()
    return card


def _one_of_heads(kind: str, kinds: Sequence[str]) -> None:
    if kind not in kinds:
        raise InputError(f"head takes {', '.join(kinds)}; got {kind!r}{did_you_mean(kind, kinds)}")


def did_you_mean(word: str, words: Sequence[str]) -> str:
    """`; did you mean x or y?` for near words, else nothing."""
    near = difflib.get_close_matches(word, list(words), n=2, cutoff=0.5)
    return f"; did you mean {' or '.join(near)}?" if near else ""


def positive(name: str, value: float) -> float:
    """The value itself, or InputError when it is not above zero."""
    if not value > 0 or not math.isfinite(value):
        raise InputError(
            f"{name} must be > 0 and finite, got {value:g}; to switch the trick off leave it out of --with"
        )
    return value


def share(name: str, value: float) -> float:
    """The value itself, or InputError when it is not in [0, 1)."""
    if not 0 <= value < 1:
        raise InputError(f"{name} is the share of steps before the switch and must be in [0, 1), got {value:g}")
    return value
