"""Two processes of `accelerate launch` (gloo) do what one does: the same first gradients, as good a model."""

import json
import os
import subprocess
import sys
from dataclasses import replace

import pytest
import torch

from danlu.tasks.folder import read_tensors

# Trains a spec and stores the gradients of the first step, before they are used.
WORKER = """
import json, os, sys
from pathlib import Path
import torch, torch.optim
from torch.optim.optimizer import register_optimizer_step_pre_hook
from danlu.tasks.folder import write_tensors
from danlu.tasks.spec import Spec
from danlu.tasks.training import train_folder

torch.set_num_threads(1)
first, seen = {}, {}
def look(optimizer, args, kwargs):
    for group in optimizer.param_groups:
        for p in group["params"]:
            number = seen.setdefault(id(p), len(seen))
            if p.grad is not None:
                first.setdefault(str(number), p.grad.detach().to_dense().clone())
register_optimizer_step_pre_hook(look)
spec = Spec.from_json(json.loads(Path(sys.argv[1]).read_text()))
record = train_folder(spec, Path(sys.argv[2]))
from accelerate import PartialState
if record is not None:
    first["processes"] = torch.tensor(PartialState().num_processes)
    write_tensors(Path(sys.argv[3]), {str(i): g for i, g in first.items() if g is not None})
"""


def launch(tmp_path, spec, name, processes):
    """Train under `accelerate launch`; returns (first gradients, metrics)."""
    (tmp_path / "worker.py").write_text(WORKER)
    (tmp_path / "spec.json").write_text(json.dumps(spec.to_json()))
    out, gradients = tmp_path / name, tmp_path / f"{name}.safetensors"
    several = ["--multi_gpu"] if processes > 1 else ["--cpu"]  # the first starts processes, over gloo where no GPU is
    command = [sys.executable, "-m", "accelerate.commands.launch", *several, "--num_processes", str(processes),
               "--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no",
               "--main_process_port", "0", "--num_cpu_threads_per_process", "1"]  # fmt: skip
    ended = subprocess.run(
        [*command, str(tmp_path / "worker.py"), str(tmp_path / "spec.json"), str(out), str(gradients)],
        capture_output=True, text=True, timeout=300, cwd=tmp_path, env={**os.environ, "PYTHONFAULTHANDLER": "1"},
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr  # whole: the process that failed first speaks first
    return read_tensors(gradients), json.loads((out / "metrics.json").read_text())["metrics"]


@pytest.mark.parametrize("tricks", [(), pytest.param(("fgm",), marks=pytest.mark.slow)])
def test_two_processes_equal_one_at_the_same_global_batch(tag_spec, tmp_path, tricks):
    # dropout draws differ between processes
    still = {"dropout": 0.0, "bigram_dropout": 0.0, "gate_dropout": 0.0, "clip": 0.0, "epochs": 10.0}
    spec = replace(tag_spec, tricks=tricks, set={**tag_spec.set, **still})
    one, alone = launch(tmp_path, spec, "one", 1)
    two, together = launch(tmp_path, spec, "two", 2)
    assert (int(one.pop("processes")), int(two.pop("processes"))) == (1, 2)
    assert one.keys() == two.keys() and len(one) > 10
    for name in one:
        torch.testing.assert_close(two[name], one[name], rtol=0, atol=1e-6)
    assert any(g.abs().max() > 1e-3 for g in one.values())
    assert abs(alone["test"]["f1"] - together["test"]["f1"]) < 0.1
    assert together["test"]["f1"] > 0.8
