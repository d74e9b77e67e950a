"""A trial in miniature for the tests of the ablation: a perceptron on points, trained and scored like the real thing.

Takes SPEC.json OUT.json. Tricks: ema averages the weights, fgm takes double steps, head:* sets the margin. The spec's
"set" can ask for trouble: {"log": file, "sleep": seconds, "trouble": {"ARM_TRICKS-SEED": kind}}.
"""

import json
import os
import random
import signal
import sys
import time
from pathlib import Path


def main(source: str, target: str) -> int:
    spec = json.loads(Path(source).read_text())
    options = spec.get("set", {})
    if "log" in options:
        with open(options["log"], "a") as log:
            log.write(f"{os.getpid()} {'+'.join(spec['with'])}-{spec['seed']}\n")
    time.sleep(options.get("sleep", 0))
    trouble = options.get("trouble", {}).get(f"{'+'.join(spec['with'])}-{spec['seed']}")
    if isinstance(trouble, str) and trouble.startswith("unless:"):  # trouble until that file exists
        trouble = None if Path(trouble[7:]).exists() else "fail"
    if trouble == "refuse":
        sys.stderr.write("warming up\ndanlu: epsilon must be > 0, got -0.5\n")
        return 2
    if trouble == "fail":
        sys.stderr.write("danlu: the loss became NaN at step 7\n")
        return 1
    if trouble == "crash":
        raise RuntimeError("a bug")
    if trouble == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    points = [tuple(map(float, line.split())) for line in Path(spec["train"]).read_text().splitlines()]
    train, test = points[::2], points[1::2]
    order = random.Random(spec["seed"])
    weights, total = [0.0, 0.0, 0.0], [0.0, 0.0, 0.0]
    for _ in range(3):
        order.shuffle(train)
        for x, y, label in train:
            score = weights[0] * x + weights[1] * y + weights[2]
            if score * label <= (0.3 if any(t.startswith("head") for t in spec["with"]) else 0.0):
                rate = 2.0 if "fgm" in spec["with"] else 1.0
                weights = [w + rate * label * v for w, v in zip(weights, (x, y, 1.0), strict=True)]
            total = [t + w for t, w in zip(total, weights, strict=True)]
    if "ema" in spec["with"]:
        weights = total
    counts = [[int((weights[0] * x + weights[1] * y + weights[2]) * label > 0), 1, 1] for x, y, label in test]
    value = sum(c for c, _, _ in counts) / len(counts)
    if trouble == "short":
        counts = counts[:-1]
        value = sum(c for c, _, _ in counts) / len(counts)
    result = {"metric": "accuracy", "value": value + (0.1 if trouble == "lies" else 0.0), "counts": counts}
    result |= {"seconds": 0.01, "memory_mb": 10.0, "metrics": {"threads": os.environ["OMP_NUM_THREADS"]}}
    if trouble == "silent":
        return 0
    Path(f"{target}.tmp").write_text("{" if trouble == "torn" else json.dumps(result))
    os.replace(f"{target}.tmp", target)
    return 0


if __name__ == "__main__":
    raise SystemExit(main(*sys.argv[1:]))
