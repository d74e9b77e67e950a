"""Model folders: whole or not there, never two writers, damaged files named, nothing of the user's lost."""

import json
import subprocess
import sys

import pytest
import torch

from danlu.data.errors import InputError
from danlu.tasks import folder as f


def test_tensors_come_back_bit_for_bit(tmp_path):
    tensors = {"a": torch.randn(3, 2), "b": torch.tensor(7), "c": torch.randn(4).bfloat16()}
    f.write_tensors(tmp_path / "t.safetensors", tensors)
    back = f.read_tensors(tmp_path / "t.safetensors")
    assert all(torch.equal(back[k], v) and back[k].dtype == v.dtype for k, v in tensors.items())


def test_a_truncated_file_is_named(tmp_path):
    path = tmp_path / "model.safetensors"
    f.write_tensors(path, {"a": torch.randn(100)})
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(InputError, match=r"model.safetensors is truncated or damaged .* bytes\); restore it"):
        f.read_tensors(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "has no task.json"),
        ("{", "task.json is damaged"),
        ("[]", "has no format_version"),
        ('{"format_version": 99}', "format 99, this danlu reads up to 1; install a newer danlu"),
    ],
)
def test_task_json_is_checked(tmp_path, content, message):
    if content is not None:
        (tmp_path / "task.json").write_text(content)
    with pytest.raises(InputError, match=message):
        f.read_task(tmp_path)


def test_missing_folder_and_file_instead_of_folder(tmp_path):
    with pytest.raises(InputError, match="no folder"):
        f.read_task(tmp_path / "none")
    (tmp_path / "x").write_text("")
    with pytest.raises(InputError, match="is a file"):
        f.read_task(tmp_path / "x")


def make(folder, **files):
    folder.mkdir()
    for name, content in files.items():
        (folder / name.replace("_", ".")).write_text(json.dumps(content))
    return folder


@pytest.mark.parametrize(
    ("state", "options", "message"),
    [
        ("result", {}, "already holds a result; --overwrite"),
        ("result", {"resume": True}, "it is complete, nothing is left to resume"),
        ("partial", {}, "unfinished run; --resume goes on with it, --overwrite starts again"),
        ("other", {"overwrite": True}, "holds other files and no danlu result"),
        ("file", {}, "is a file; give a folder"),
        ("none", {"resume": True, "overwrite": True}, "not both"),
    ],
)
def test_targets_that_would_lose_something_are_refused(tmp_path, state, options, message):
    out = tmp_path / "out"
    if state == "result":
        make(out, task_json={})
    if state == "other":
        make(out, photo_json={})
    if state == "partial":
        make(f.partial_of(out))
    if state == "file":
        out.write_text("")
    with pytest.raises(InputError, match=message):
        f.check_target(out, mark="task.json", **{"overwrite": False, "resume": False, **options})


@pytest.mark.parametrize(
    ("state", "options"), [("none", {}), ("result", {"overwrite": True}), ("partial", {"resume": True}), ("empty", {})]
)
def test_targets_that_lose_nothing_are_taken(tmp_path, state, options):
    out = tmp_path / "out"
    if state == "result":
        make(out, task_json={})
    if state == "empty":
        out.mkdir()
    if state == "partial":
        make(f.partial_of(out))
    f.check_target(out, mark="task.json", **{"overwrite": False, "resume": False, **options})


def test_publish_replaces_at_the_end(tmp_path):
    out = make(tmp_path / "out", task_json={"old": 1})
    new = make(f.partial_of(out), task_json={"new": 1})
    f.publish(new, out)
    assert json.loads((out / "task.json").read_text()) == {"new": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_two_writers_are_kept_apart_and_a_dead_one_is_forgotten(tmp_path):
    out = tmp_path / "out"
    hold = (
        "import sys,time; from pathlib import Path; from danlu.tasks.folder import locked\n"
        "with locked(Path(sys.argv[1])):\n print('held', flush=True); time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", hold, str(out)], stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None and other.stdout.readline() == "held\n"
        with pytest.raises(InputError, match="another run is writing"), f.locked(out):
            pass
        other.kill()
    with f.locked(out):
        pass
