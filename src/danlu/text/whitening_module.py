r"""A whitening as a torch module: behind any encoder, or as the last module of a SentenceTransformer.

    y = (x - c) K + e,   c = beta mu in float32,   e = (c - beta mu) K from float64                           (1)

Before (1) the vectors are brought to float32 and afterwards back, also under autocast, since in half precision x - c
has few digits left. `save` and `load` follow sentence-transformers: a folder with config.json and model.safetensors.
Since version 6 it opens folders with modules that are not its own only with trust_remote_code=True;
`Whitening.to_dense` makes one of its own.

Source: see `danlu.text.whitening`; the convention is that of sentence-transformers' modules.
Shapes: D features, k kept dimensions.
"""

from __future__ import annotations

import json
from collections.abc import MutableMapping
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from danlu.data.errors import InputError

__all__ = ["WhiteningModule"]

CONFIG, WEIGHTS = "config.json", "model.safetensors"


class WhiteningModule(nn.Module):
    """The map of a fitted `Whitening` (its `to_module` makes one), eq. (1). Nothing in it is trained.

    Args:
        in_features: D.
        out_features: k.
        normalize: bring results to length 1.

    Source: see the module. Shapes: (..., D) to (..., k).
    """

    center: Tensor
    kernel: Tensor
    bias: Tensor

    def __init__(self, in_features: int, out_features: int, normalize: bool = False) -> None:
        super().__init__()
        self.in_features, self.out_features, self.normalize = in_features, out_features, normalize
        self.register_buffer("center", torch.zeros(in_features))
        self.register_buffer("kernel", torch.eye(in_features, out_features))
        self.register_buffer("bias", torch.zeros(out_features))

    @classmethod
    def of(cls, kernel: Tensor, center: Tensor, normalize: bool = False) -> WhiteningModule:
        """The module of a map (x - center) K.

        Args:
            kernel: (D, k), best in float64.
            center: (D,), best in float64.
            normalize: as of the class.

        Returns:
            A module in float32.
        """
        made = cls(kernel.shape[0], kernel.shape[1], normalize).to(kernel.device)
        made.center.copy_(center)
        made.kernel.copy_(kernel)
        made.bias.copy_((made.center.double() - center.double()) @ kernel.double())
        return made

    def forward(self, features: Tensor | MutableMapping[str, Any]) -> Any:
        """Whitened vectors, eq. (1).

        Args:
            features: (..., D) floats; or what sentence-transformers hands on, a mapping whose "sentence_embedding" is
                replaced.

        Returns:
            (..., k) in the dtype of the vectors, or the mapping.

        Raises:
            ValueError: vectors of another size.
        """
        if not isinstance(features, Tensor):
            features["sentence_embedding"] = self.forward(features["sentence_embedding"])
            return features
        if features.shape[-1] != self.in_features:
            raise ValueError(
                f"this whitening takes vectors of {self.in_features} features, got {tuple(features.shape)}; it belongs "
                "behind the encoder and pooling it was fitted on"
            )
        wide = torch.promote_types(torch.promote_types(features.dtype, self.kernel.dtype), torch.float32)
        center, kernel, bias = self.center.to(wide), self.kernel.to(wide), self.bias.to(wide)
        with torch.autocast(features.device.type, enabled=False):
            y = (features.to(wide) - center) @ kernel + bias  # (..., k)  eq. (1)
            y = F.normalize(y, dim=-1) if self.normalize else y
        return y.to(features.dtype)

    def get_config_dict(self) -> dict[str, Any]:
        """What config.json holds."""
        return {"in_features": self.in_features, "out_features": self.out_features, "normalize": self.normalize}

    def get_embedding_dimension(self) -> int:
        """k, for sentence-transformers."""
        return self.out_features

    def get_sentence_embedding_dimension(self) -> int:
        """k, for sentence-transformers before version 6."""
        return self.out_features

    def save(self, output_path: str, *args: Any, safe_serialization: bool = True, **kwargs: Any) -> None:
        """Write config.json and model.safetensors.

        Args:
            output_path: an existing folder.
            *args: not used; sentence-transformers may pass more.
            safe_serialization: not used, the weights are always safetensors.
            **kwargs: not used.
        """
        folder = Path(output_path)
        (folder / CONFIG).write_text(json.dumps(self.get_config_dict(), indent=2) + "\n", encoding="utf-8")
        save_file(
            {name: part.detach().cpu().contiguous() for name, part in self.state_dict().items()}, folder / WEIGHTS
        )

    @classmethod
    def load(
        cls,
        model_name_or_path: str,
        subfolder: str = "",
        token: bool | str | None = None,
        cache_folder: str | None = None,
        revision: str | None = None,
        local_files_only: bool = False,
        **kwargs: Any,
    ) -> WhiteningModule:
        """What `save` wrote, from a folder, or from wherever sentence-transformers finds a model of this name.

        Args:
            model_name_or_path: a folder, or a name for sentence-transformers.
            subfolder: of the module inside it.
            token: for sentence-transformers.
            cache_folder: for sentence-transformers.
            revision: for sentence-transformers.
            local_files_only: for sentence-transformers.
            **kwargs: not used.

        Returns:
            The module, in float32.

        Raises:
            InputError: a file is missing, damaged, or not of such a module.
        """
        paths = {name: Path(model_name_or_path, subfolder, name) for name in (CONFIG, WEIGHTS)}
        if not Path(model_name_or_path).is_dir():
            try:
                from sentence_transformers.util import load_file_path
            except ImportError:
                raise InputError(f"{model_name_or_path} is no folder; give the one that save wrote to") from None
            for name in paths:
                found = load_file_path(
                    model_name_or_path, name, subfolder, token=token, cache_folder=cache_folder, revision=revision,
                    local_files_only=local_files_only,
                )  # fmt: skip
                if found is None:
                    raise InputError(f"{model_name_or_path} has no {subfolder}/{name}".replace(" /", " "))
                paths[name] = Path(found)
        try:
            made = cls(**json.loads(paths[CONFIG].read_text(encoding="utf-8")))
            made.load_state_dict(load_file(paths[WEIGHTS]))
        except (OSError, SafetensorError, ValueError, TypeError, RuntimeError) as error:
            told = next(iter(str(error).splitlines()), "") or type(error).__name__
            raise InputError(
                f"{Path(model_name_or_path, subfolder)} holds no whitening that WhiteningModule.save wrote ({told})"
            ) from None
        return made
