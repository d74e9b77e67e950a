"""Steps of a path, one after the other, in memory or each as a file of its own.

Source: own definitions.
Shapes: any.
"""

from pathlib import Path

from safetensors.torch import load_file, save_file
from torch import Tensor


class StepStore:
    """A list of dicts of tensors; with a folder, only the one that is asked for is in memory."""

    def __init__(self, folder: str | Path | None) -> None:
        """Make the folder; it is to hold no steps yet."""
        self.folder = None if folder is None else Path(folder)
        self._steps: list[dict[str, Tensor]] = []
        self._count = 0
        if self.folder is not None:
            self.folder.mkdir(parents=True, exist_ok=True)
            if next(self.folder.glob("step_*.safetensors"), None) is not None:
                raise ValueError(f"{self.folder} holds the steps of another path; give an empty or a new folder")

    def append(self, tensors: dict[str, Tensor]) -> None:
        """Keep copies."""
        if self.folder is None:
            self._steps.append({name: t.detach().clone() for name, t in tensors.items()})
        else:
            own = {name: t.detach().cpu().clone().contiguous() for name, t in tensors.items()}
            save_file(own, self._file(self._count))
        self._count += 1

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, step: int) -> dict[str, Tensor]:
        return self._steps[step] if self.folder is None else load_file(self._file(step))

    def _file(self, step: int) -> Path:
        assert self.folder is not None
        return self.folder / f"step_{step:08d}.safetensors"
