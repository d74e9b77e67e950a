"""Keras weight files for the tests: the layers that bert4keras wrote, filled with numbers computed again."""

import base64
import json
from pathlib import Path

import numpy as np

ORACLE = json.loads((Path(__file__).parent.parent / "oracles" / "keras_weights.json").read_text(encoding="utf-8"))
MODELS = ORACLE["models"]
IDS, SEGMENTS = [[2, 5, 7, 3, 0], [2, 9, 4, 6, 3]], [[0, 0, 1, 1, 0], [0, 1, 1, 1, 1]]
CONFIG = {
    "vocab_size": 11, "hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 10,
    "hidden_act": "gelu", "max_position_embeddings": 9, "type_vocab_size": 2,
}  # fmt: skip


def values(number, shape):
    """The numbers of weight `number`: a hash of their places, in [-0.6, 0.6)."""
    x = (np.arange(int(np.prod(shape)), dtype=np.uint64) + 1) * np.uint64(2654435761)
    x = (x + np.uint64(number) * np.uint64(2246822519)) % np.uint64(2**32)
    x ^= x >> np.uint64(15)
    x = x * np.uint64(2246822519) % np.uint64(2**32)
    x ^= x >> np.uint64(13)
    return ((x / 2**32 - 0.5) * 1.2).astype("f").reshape(shape)


def sinusoids(rows, columns):
    table = [[p / 10000 ** (i // 2 * 2 / columns) for i in range(columns)] for p in range(rows)]
    return np.array([[np.cos(a) if i % 2 else np.sin(a) for i, a in enumerate(row)] for row in table], "f")


def weights(name):
    """[layer, [[weight, values], ...]] of a model of the oracle."""
    number, filled = 0, []
    for layer, *held in MODELS[name]["layers"]:
        arrays = []
        for weight, shape in held:
            fixed = weight.startswith("Embedding-Relative-Position")
            arrays.append([weight, sinusoids(*shape) if fixed else values(number, shape)])
            number += 1
        filled.append([layer, arrays])
    return filled


def write(path, layers, root=""):
    """What Keras 2 writes: names in attributes, every weight below its layer's group."""
    import h5py

    with h5py.File(path, "w") as file:
        group = file.create_group(root) if root else file
        group.attrs["layer_names"] = [layer.encode() for layer, _ in layers]
        for layer, arrays in layers:
            inside = group.create_group(layer)
            inside.attrs["weight_names"] = [f"{weight}:0".encode() for weight, _ in arrays]
            for weight, array in arrays:
                inside[f"{weight}:0"] = array
    return path


def write_tf_format(folder):
    """The checkpoint that tf.keras wrote for the model "crf"."""
    for name, content in ORACLE["tf_format"].items():
        (folder / name).write_bytes(base64.b64decode(content))
    return folder / "best_model.weights"
