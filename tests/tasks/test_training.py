"""Training: learns, repeats itself, resumes bit for bit from any moment, and writes a folder that predicts the same."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from dataclasses import replace

import pytest
import torch

from danlu.data.errors import InputError, WorkError
from danlu.tasks.folder import partial_of, read_tensors
from danlu.tasks.trained import Trained
from danlu.tasks.training import halves, read_parts, train_folder, train_model


class Interrupted(Exception):
    """Stands for the moment the machine goes down."""


def weights(folder):
    return read_tensors(folder / "model.safetensors")


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def test_a_tagger_learns_and_its_folder_says_the_same(tag_spec, tmp_path):
    spec = replace(tag_spec, set={**tag_spec.set, "epochs": 12.0})
    record = train_folder(spec, tmp_path / "out", command="danlu train tag")
    assert record["metrics"]["test"]["f1"] > 0.8
    assert {
        "config.json",
        "model.safetensors",
        "vocab.txt",
        "task.json",
        "metrics.json",
        "log.jsonl",
        "report.html",
    } <= {p.name for p in (tmp_path / "out").iterdir()}
    assert not partial_of(tmp_path / "out").exists()
    trained = Trained.load(tmp_path / "out", device="cpu", precision="fp32", threads=1)
    assert trained.evaluate(spec.test)["metrics"]["f1"] == record["metrics"]["test"]["f1"]
    words = [r["words"] for r in trained.predict(["我们在北京学习", "", "   ", "龘龘"])]
    assert ["".join(w) for w in words] == ["我们在北京学习", "", "", "龘龘"]


def test_a_classifier_learns_and_its_folder_says_the_same(classify_spec, tmp_path):
    record = train_folder(classify_spec, tmp_path / "out")
    assert record["metrics"]["test"]["accuracy"] > 0.9
    trained = Trained.load(tmp_path / "out", device="cpu", precision="fp32", threads=1)
    assert trained.evaluate(classify_spec.test)["metrics"]["accuracy"] == record["metrics"]["test"]["accuracy"]
    results = list(trained.predict(["很好喜欢", "", "讨厌讨厌不好"]))
    assert [r["label"] for r in results] == ["好", None, "坏"]


def test_long_sentences_are_joined_from_windows_without_a_seam(tag_spec):
    """The encoder sees 3 tokens to each side; windows with a context of 3 must give the whole sentence's scores."""
    spec = replace(tag_spec, set={**tag_spec.set, "context": 3})
    run = train_model(spec, read_parts(spec))
    from danlu.tasks import get_task

    task = get_task("tag")
    text = "我们在北京学习数学喜欢的科学空间和上海大学一个新方法很好" * 4
    cut = task.predict(run.model, [text])
    run.model.config["max_len"] = 10_000
    assert run.model.encoder.dgcnn.receptive_field <= 7
    assert task.predict(run.model, [text]) == cut


@pytest.mark.parametrize("tricks", [(), ("ema:0.9", "fgm"), ("noise:0.1", "head:memm")])
def test_interrupted_five_times_it_ends_with_the_same_bits(tag_spec, tmp_path, tricks):
    spec = replace(tag_spec, tricks=tricks)
    train_folder(spec, tmp_path / "whole")
    stream = random.Random(len(tricks))
    moments = sorted(stream.sample(range(1, 16), 5))

    for moment in moments:

        def stop(event, moment=moment):
            if event["event"] == "step" and event["step"] == moment:
                raise Interrupted

        with pytest.raises(Interrupted):
            train_folder(spec, tmp_path / "parts", resume=moment != moments[0], on_event=stop)
        torch.manual_seed(stream.randint(0, 99))  # whatever happened to the global stream between
    record = train_folder(spec, tmp_path / "parts", resume=True)
    assert same(weights(tmp_path / "whole"), weights(tmp_path / "parts"))
    whole = json.loads((tmp_path / "whole" / "metrics.json").read_text())
    assert record["metrics"] == whole["metrics"]
    assert [{k: v for k, v in row.items() if k != "seconds"} for row in record["log"]] == [
        {k: v for k, v in row.items() if k != "seconds"} for row in whole["log"]
    ]


@pytest.mark.slow
def test_killed_with_sigkill_at_five_random_moments_it_ends_with_the_same_bits(tag_spec, tmp_path):
    spec = replace(tag_spec, tricks=("ema:0.9",), set={**tag_spec.set, "epochs": 60.0})
    (tmp_path / "spec.json").write_text(json.dumps(spec.to_json()))
    script = (
        "import json, sys; from pathlib import Path\n"
        "from danlu.tasks.spec import Spec; from danlu.tasks.training import train_folder\n"
        "spec = Spec.from_json(json.loads(Path(sys.argv[1]).read_text()))\n"
        "train_folder(spec, Path(sys.argv[2]), resume=True, on_event=lambda e: print(e['event'], flush=True))"
    )
    command = [sys.executable, "-c", script, str(tmp_path / "spec.json")]
    subprocess.run([*command, str(tmp_path / "whole")], check=True, stdout=subprocess.DEVNULL)
    stream, kills = random.Random(1), 0
    while kills < 5:
        with subprocess.Popen([*command, str(tmp_path / "parts")], stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            for line in process.stdout:
                if line.startswith("step"):
                    break
            time.sleep(stream.uniform(0.0, 0.6))
            os.kill(process.pid, signal.SIGKILL)
        if process.wait() == -signal.SIGKILL:
            kills += 1
        assert not (tmp_path / "parts" / "task.json").exists(), "training ended before it was killed; raise epochs"
    subprocess.run([*command, str(tmp_path / "parts")], check=True, stdout=subprocess.DEVNULL)
    assert same(weights(tmp_path / "whole"), weights(tmp_path / "parts"))


def test_same_seed_same_bits_other_seed_other_bits(tag_spec, tmp_path):
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        train_folder(replace(tag_spec, seed=seed), tmp_path / name)
    assert same(weights(tmp_path / "a"), weights(tmp_path / "b"))
    assert not same(weights(tmp_path / "a"), weights(tmp_path / "c"))


def test_evaluating_more_often_changes_no_weight(tag_spec, tmp_path):
    last = {**tag_spec.set, "select": "last"}
    train_folder(replace(tag_spec, set=last), tmp_path / "a")
    train_folder(replace(tag_spec, set={**last, "evaluations": 7}), tmp_path / "b")
    assert same(weights(tmp_path / "a"), weights(tmp_path / "b"))


def test_a_loss_that_is_not_finite_stops_with_advice_and_touches_nothing(tag_spec, tmp_path):
    train_folder(tag_spec, tmp_path / "out")
    before = weights(tmp_path / "out")
    with pytest.raises(WorkError, match=r"the loss became (nan|inf) .* lower the rate with --set lr="):
        train_folder(
            replace(tag_spec, set={**tag_spec.set, "lr": 900.0, "clip": 0.0, "epochs": 20.0}),
            tmp_path / "out",
            overwrite=True,
        )
    assert same(weights(tmp_path / "out"), before)


def test_resume_with_other_options_is_refused(tag_spec, tmp_path):
    def stop(event):
        if event["event"] == "step" and event["step"] == 7:
            raise Interrupted

    with pytest.raises(Interrupted):
        train_folder(tag_spec, tmp_path / "out", on_event=stop)
    with pytest.raises(InputError, match=r"was begun with other options \(seed\)"):
        train_folder(replace(tag_spec, seed=3), tmp_path / "out", resume=True)


def test_labels_unseen_in_training_are_named_or_skipped(classify_spec, tmp_path):
    odd = tmp_path / "odd.csv"
    odd.write_text("text,label\n很好,好\n什么,怪\n", encoding="utf-8")
    spec = replace(classify_spec, dev=str(odd), test=None)
    with pytest.raises(InputError, match=r"odd.csv line 3: label '怪' does not occur in the training data"):
        train_folder(spec, tmp_path / "out")
    record = train_folder(replace(spec, on_bad_rows="skip"), tmp_path / "out")
    card = next(part for part in record["data"] if part["role"] == "dev")
    assert (card["examples"], card["skipped"]) == (1, 1)


def test_halves_are_fixed_and_apart():
    class Text:
        def __init__(self, text):
            self.text = text

    texts = [Text(f"句子{i}") for i in range(200)]
    a, b = halves(texts)
    assert len(a) + len(b) == 200 and 60 < len(a) < 140
    again, _ = halves(texts[::-1])
    assert {t.text for t in again} == {t.text for t in a}
