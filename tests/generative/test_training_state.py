"""A training goes on bit for bit after any stop; files of something else are refused."""

import pytest
import torch
from torch import nn

from danlu.generative.training_state import load_state, save_state
from danlu.optim import EMA


class Training:
    """Two networks against each other, two optimizers, noise from a stream of its own and from the global one."""

    def __init__(self):
        torch.manual_seed(3)
        self.nets = {
            "generator": nn.Sequential(nn.Linear(2, 8), nn.BatchNorm1d(8), nn.Linear(8, 2)),
            "critic": nn.Linear(2, 1),
        }
        self.optimizers = {
            "generator": torch.optim.Adam(self.nets["generator"].parameters(), 1e-2, betas=(0.5, 0.9)),
            "critic": torch.optim.RMSprop(self.nets["critic"].parameters(), 1e-2),
        }
        self.stream = torch.Generator().manual_seed(5)
        self.average = EMA(self.nets["generator"], 0.9)

    def run(self, begin, end):
        for _ in range(begin, end):
            fake = self.nets["generator"](torch.randn(16, 2, generator=self.stream))
            real = torch.randn(16, 2) + 1
            loss = self.nets["critic"](fake).mean() - self.nets["critic"](real).mean()
            for name, sign in (("critic", 1), ("generator", -1)):
                self.optimizers[name].zero_grad()
                (sign * loss).backward(retain_graph=True, inputs=list(self.nets[name].parameters()))
            for optimizer in self.optimizers.values():
                optimizer.step()
            self.average.update()
            for optimizer in self.optimizers.values():
                optimizer.param_groups[0]["lr"] *= 0.99

    def parts(self):
        return {
            "modules": self.nets | {"average": self.average},
            "optimizers": self.optimizers,
            "generators": {"noise": self.stream},
        }


def test_a_stopped_run_ends_with_the_same_bits(tmp_path):
    path = tmp_path / "state.safetensors"
    whole = Training()
    whole.run(0, 12)
    first = Training()
    first.run(0, 7)
    save_state(path, 7, **first.parts(), notes={"log": [1.5, 2.0]})
    second = Training()
    torch.randn(9)  # wherever the stream stands
    step, notes = load_state(path, **second.parts())
    assert (step, notes) == (7, {"log": [1.5, 2.0]})
    second.run(step, 12)
    for name, net in whole.nets.items():
        other = second.nets[name].state_dict()
        assert all(torch.equal(value, other[key]) for key, value in net.state_dict().items())
    with whole.average.swap(), second.average.swap():
        assert torch.equal(whole.nets["generator"][0].weight, second.nets["generator"][0].weight)
    assert second.optimizers["critic"].param_groups[0]["lr"] == whole.optimizers["critic"].param_groups[0]["lr"]
    assert [p.name for p in tmp_path.iterdir()] == ["state.safetensors"]


def test_nothing_to_go_on_from(tmp_path):
    assert load_state(tmp_path / "none", {"a": nn.Linear(1, 1)}) == (0, {})


def test_files_that_do_not_fit_are_named(tmp_path):
    path = tmp_path / "state.safetensors"
    run = Training()
    save_state(path, 1, **run.parts())
    with pytest.raises(
        ValueError, match=r"holds modules average critic generator, .*this run has modules critic, optimizers none"
    ):
        load_state(path, {"critic": run.nets["critic"]})
    wider = run.parts()["modules"] | {"critic": nn.Linear(3, 1)}
    with pytest.raises(ValueError, match=r"does not fit module critic: .*size mismatch for weight"):
        load_state(path, **(run.parts() | {"modules": wider}))
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(ValueError, match=r"state.safetensors is damaged .*delete it to start again"):
        load_state(path, **run.parts())
    from safetensors.torch import save_file

    save_file({"a": torch.zeros(1)}, path)
    with pytest.raises(ValueError, match="is no training state of danlu"):
        load_state(path, **run.parts())
    with pytest.raises(ValueError, match="Out of range float values"):
        save_state(path, 1, {}, notes={"loss": float("nan")})
