"""Progress on stderr: what the events of a run look like, and how long things take in words."""

import time
from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as Bar
from rich.text import Text

__all__ = ["Progress", "duration"]


class Progress:
    """Draws events: bars on a terminal, a line now and then elsewhere."""

    def __init__(self) -> None:
        self.console = Console(stderr=True, highlight=False)
        self.live = self.console.is_terminal
        self.bar = Bar(
            TextColumn("{task.description}"), BarColumn(bar_width=30), MofNCompleteColumn(), TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=self.console, disable=not self.live, transient=True,
        )  # fmt: skip
        self.steps: Any = None
        self.trials: Any = None
        self.loss = ""
        self.told = time.monotonic()

    def __enter__(self) -> "Progress":
        self.bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.stop()

    def say(self, text: str) -> None:
        """One line above the bars."""
        self.console.print(Text(text), soft_wrap=True)

    def __call__(self, event: Mapping[str, Any]) -> None:
        """Draw one event."""
        handler = getattr(self, f"on_{event['event']}", None)
        if handler:
            handler(event)

    def on_phase(self, event: Mapping[str, Any]) -> None:
        """A new part of the work."""
        self.say(event["text"])
        if self.steps is not None:
            self.bar.remove_task(self.steps)
            self.steps = None

    def on_data(self, event: Mapping[str, Any]) -> None:
        """What was read."""
        for part in event["parts"]:
            skipped = f", {part['skipped']:,} rows skipped" if part["skipped"] else ""
            skipped += f", {part['repaired']:,} tag sequences repaired" if part.get("repaired") else ""
            self.say(
                f"{part['role']:5} {part['name']}: {part['examples']:,} examples, {part['tokens']:,} tokens{skipped}"
            )
            for kind in ("skipped", "repaired"):
                for row in part.get(f"{kind}_rows", [])[:5]:
                    self.say(f"      {kind} {row['file']} line {row['line']}, {row['field']}: {row['reason']}")
            if part.get("also_in_train"):
                self.say(f"      {part['also_in_train']:,} of these also stand in the training data, word for word")

    def on_step(self, event: Mapping[str, Any]) -> None:
        """One optimiser step."""
        if not self.live:
            return
        if self.steps is None:
            self.steps = self.bar.add_task("training", total=event["total"])
        self.bar.update(self.steps, completed=event["step"], description=f"training {self.loss}")

    def on_loss(self, event: Mapping[str, Any]) -> None:
        """Mean loss of the last steps."""
        self.loss = f"loss {event['loss']:.4f}"
        if not self.live and time.monotonic() - self.told > 20:
            self.told = time.monotonic()
            self.say(f"step {event['step']:,} epoch {event['epoch']:.2f} loss {event['loss']:.4f}")

    def on_dev(self, event: Mapping[str, Any]) -> None:
        """Scores on dev."""
        scores = "  ".join(f"{k} {v:.4f}" for k, v in event["dev"].items() if isinstance(v, float))
        self.say(f"step {event['step']:,} epoch {event['epoch']:.2f} dev  {scores}")

    def on_stop(self, event: Mapping[str, Any]) -> None:
        """Stopped early."""
        self.say(f"stopped at step {event['step']:,}: no better dev score since step {event['best_step']:,}")

    def on_plan(self, event: Mapping[str, Any]) -> None:
        """What an ablation will do."""
        stored = f", {event['stored']} of them stored already" if event["stored"] else ""
        self.say(
            f"{event['trials']} trials{stored}: {', '.join(event['arms'])}; {len(event['seeds'])} seeds; "
            f"{event['jobs']} at a time"
        )
        if self.live:
            self.trials = self.bar.add_task("trials", total=event["trials"], completed=event["stored"])

    def on_estimate(self, event: Mapping[str, Any]) -> None:
        """How long it takes."""
        self.say(f"about {duration(event['seconds'])} to go (from the {event['of']})")

    def on_trial(self, event: Mapping[str, Any]) -> None:
        """A trial ended."""
        self.say(
            f"{event['done']:3}/{event['trials']}  {event['arm']:20} seed {event['seed']:<3} {event['value']:.4f}  "
            f"{event['seconds']:.1f} s"
        )
        if self.trials is not None:
            self.bar.update(self.trials, completed=event["done"])

    def on_failed(self, event: Mapping[str, Any]) -> None:
        """A trial failed."""
        self.say(
            f"{event['done']:3}/{event['trials']}  {event['arm']:20} seed {event['seed']:<3} FAILED: {event['line']}"
        )


def duration(seconds: float | None) -> str:
    """Seconds in words a person reads."""
    if seconds is None:
        return "an unknown time"
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 5400:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"
