"""Importing danlu, beside torch's own import and transformers': seconds in fresh interpreters, files warm.

python benchmarks/import_time.py [--json FILE] [--repetitions N]

Every measurement runs in an interpreter of its own. "above torch" is the time of the import where torch was imported
before, which is what a program that uses torch pays for danlu. "alone" starts from nothing; the time of `import torch`
stands beside it. Methods alternate within each repetition, after one round that is not counted; medians are reported.
"""

import argparse
import importlib.util
import statistics
import subprocess
import sys
from pathlib import Path

from _machine import record, write

TARGET = 0.2  # seconds of `import danlu` above torch
CODE = "import sys, time\n{before}\nbegin = time.perf_counter()\n{code}\nprint(time.perf_counter() - begin)"
METHODS = {
    "torch alone": ("", "import torch"),
    "danlu alone": ("", "import danlu"),
    "danlu above torch": ("import torch", "import danlu"),
    "danlu.text above torch": ("import torch", "import danlu.text"),
    "danlu, everything, above torch": (
        "import torch",
        "import danlu.math, danlu.nn, danlu.losses, danlu.optim, danlu.train, danlu.data, danlu.text, danlu.probe",
    ),
}
PEERS = {
    "transformers.BertModel above torch": ("import torch", "from transformers import BertModel"),
    "bert4torch.models above torch": ("import torch", "import bert4torch.models"),
}


def seconds(before: str, code: str) -> float:
    """Seconds of `code` in a fresh interpreter after `before`."""
    command = [sys.executable, "-c", CODE.format(before=before, code=code)]
    ended = subprocess.run(command, capture_output=True, text=True, check=True)
    return float(ended.stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="write the result here")
    parser.add_argument("--repetitions", type=int, default=5)
    options = parser.parse_args()
    methods = dict(METHODS)
    packages = ["danlu", "torch"]
    for name, imports in PEERS.items():
        package = name.split(".")[0]
        if not importlib.util.find_spec(package):
            print(f"{package} is not installed; its row is left out")
            continue
        try:
            seconds(*imports)
        except subprocess.CalledProcessError as error:  # bert4torch uses packages that it does not require
            reason = (error.stderr.strip().splitlines() or ["no reason given"])[-1]
            print(f"{package} cannot be imported ({reason}); its row is left out")
            continue
        methods[name] = imports
        packages.append(package)
    head = record(packages)
    times: dict[str, list[float]] = {name: [] for name in methods}
    for repetition in range(options.repetitions + 1):
        for name, imports in methods.items():
            taken = seconds(*imports)
            if repetition:
                times[name].append(taken)
    medians = {name: statistics.median(values) for name, values in times.items()}
    base = medians["danlu above torch"]
    for name, value in medians.items():
        ratio = f"{value / base:8.1f} x" if "above torch" in name else ""
        print(f"{name:<38}{value:8.3f} s  least {min(times[name]):.3f} s{ratio}")
    print(f"\nimport danlu above torch: {base:.3f} s (target under {TARGET} s): {'met' if base < TARGET else 'MISSED'}")
    result = head | {
        "setting": {"repetitions": options.repetitions},
        "seconds": times,
        "median_seconds": medians,
        "target_seconds": TARGET,
    }
    write(options.json, result)


if __name__ == "__main__":
    main()
