"""What `danlu pretrain` parses and shows."""

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from danlu.cli.progress import Progress
from danlu.cli.show import dump
from danlu.data.errors import InputError

__all__ = ["PretrainProgress", "print_pretraining"]


class PretrainProgress(Progress):
    """Draws the events of a pretraining run, with speed and time left."""

    def on_loss(self, event: Mapping[str, Any]) -> None:
        """Mean loss of the last steps."""
        self.loss = f"loss {event['loss']:.4f}"
        if time.monotonic() - self.told > 20 or event["step"] == event["total"]:
            self.told = time.monotonic()
            speed = event["tokens_per_second"]
            left = (event["total"] - event["step"]) * event["tokens"] / event["step"] / max(1, speed)
            self.say(
                f"step {event['step']:,} of {event['total']:,}  epoch {event['epoch']:.2f}  loss {event['loss']:.4f}  "
                f"accuracy {event['accuracy']:.4f}  {speed:,} tokens/s  {left / 60:,.0f} min left"
            )

    def on_held_out(self, event: Mapping[str, Any]) -> None:
        """Scores on text that is not trained on."""
        scores = event["held_out"]
        self.say(f"step {event['step']:,}  held-out accuracy {scores['accuracy']:.4f}  loss {scores['loss']:.4f}")


def print_pretraining(record: Mapping[str, Any], folder: Path, as_json: bool = False) -> None:
    """The end of a run: JSON, or some lines."""
    if as_json:
        return dump(record)
    print(f"steps       {record['steps']:,}")
    print(f"tokens      {record['tokens']:,} in {record['seconds'] / 60:,.1f} min")
    print(f"parameters  {record['parameters']:,}")
    print(f"loss        {record['loss']:.4f}")
    if "held_out" in record:
        print(f"held out    accuracy {record['held_out']['accuracy']:.4f}, loss {record['held_out']['loss']:.4f}")
    print(f"wrote {folder}")
    return None


def check_files(paths: list[str], option: str) -> None:
    """Tell of a missing file before any work."""
    for path in paths:
        if path not in ("-", "mini-zh") and not Path(path).is_file():
            raise InputError(f"{option} {path}: no such file; give text files (plain or .gz), - or mini-zh")
