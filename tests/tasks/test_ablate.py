"""The ablation: its arms, its record against the trials run by hand, its resume after kill -9, its failures."""

import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from danlu.data.errors import InputError, WorkError
from danlu.tasks.ablate import plan, run_ablation
from danlu.tasks.statistics import paired_difference, verdicts

WORKER = str(Path(__file__).with_name("small_trial.py"))
COMMAND = [sys.executable, "-S", WORKER]
TIMES = re.compile(r'^\s*"(seconds|created|memory_mb|total|wall)": [^{].*\n', re.MULTILINE)


def points(path: Path, n: int = 120, seed: int = 0) -> str:
    rng = random.Random(seed)
    rows = []
    for _ in range(n):
        x, y = rng.gauss(0, 1), rng.gauss(0, 1)
        rows.append(f"{x:.3f} {y:.3f} {1 if x + 0.5 * y + rng.gauss(0, 0.7) > 0 else -1}")
    path.write_text("\n".join(rows))
    return str(path)


@pytest.fixture
def spec(tmp_path: Path) -> dict:
    return {"task": "tag", "train": points(tmp_path / "train.txt"), "dev": "d", "test": "t", "seed": 0, "set": {}}


def by_hand(spec: dict, tricks: list[str], seed: int, folder: Path) -> dict:
    source, target = folder / "spec.json", folder / "out.json"
    source.write_text(json.dumps({**spec, "with": tricks, "seed": seed}))
    subprocess.run([*COMMAND, source, target], check=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    return json.loads(target.read_text())


def timeless(path: Path) -> str:
    """ablation.json without the lines that hold times."""
    return TIMES.sub("", (path / "ablation.json").read_text())


def ablate(spec: dict, out: Path, tricks=("fgm", "ema"), seeds=3, **options) -> dict:
    return run_ablation(spec, list(tricks), seeds, out, command=COMMAND, **options)


# ---------------------------------------------------------------- plan


def test_arms():
    design = plan({"task": "tag", "seed": 7}, ["fgm", "ema:0.99", "crf_lr"], 3)
    assert [arm.name for arm in design.arms] == ["baseline", "fgm", "ema:0.99", "crf_lr", "all"]
    assert [arm.tricks for arm in design.arms] == [
        (), ("fgm",), ("ema:0.99",), ("crf_lr",), ("fgm", "ema:0.99", "crf_lr"),
    ]  # fmt: skip
    assert design.seeds == (7, 8, 9) and design.notes == ()
    assert design.arms[1].cost > 1.3 and design.arms[4].cost > design.arms[1].cost


def test_one_trick_has_no_all_arm():
    assert [arm.name for arm in plan({"task": "tag"}, ["fgm"], 3).arms] == ["baseline", "fgm"]


def test_rivals_are_not_switched_on_together():
    design = plan({"task": "tag"}, ["head:crf", "fgm", "head:memm", "pgd"], 3)
    assert design.arms[-1].name == "first of each" and design.arms[-1].tricks == ("head:crf", "fgm")
    assert "leaves out head:memm (a rival of head:crf), pgd (a rival of fgm)" in design.notes[0]
    rivals = ["head:crf", "head:memm"]
    assert [a.name for a in plan({"task": "tag"}, rivals, 3).arms] == ["baseline", *rivals]


def test_what_every_arm_shares():
    design = plan({"task": "tag", "with": ["crf_lr"]}, ["fgm", "ema"], [5, 3])
    assert [arm.tricks[0] for arm in design.arms] == ["crf_lr"] * 4 and design.seeds == (5, 3)


@pytest.mark.parametrize(
    ("tricks", "seeds", "text"),
    [
        ([], 3, "nothing to compare: give tricks"),
        (["fgm", "fgm"], 3, "fgm is given twice"),
        (["fmg"], 3, "unknown trick 'fmg'.*did you mean fgm"),
        (["fgm:-1"], 3, "epsilon must be > 0"),
        (["fgm"], 0, "seeds must be one or more different whole numbers, got 0"),
        (["fgm"], [1, 1], r"got \[1, 1\]"),
    ],
)
def test_plan_messages(tricks, seeds, text):
    with pytest.raises(InputError, match=text):
        plan({"task": "tag"}, tricks, seeds)


def test_few_seeds_are_told():
    assert "fewer than 3 seeds" in plan({"task": "tag"}, ["fgm"], 2).notes[0]


# ---------------------------------------------------------------- the record


def test_record_equals_trials_by_hand(spec, tmp_path):
    record = ablate(spec, tmp_path / "out", command_line="danlu ablate tag")
    arms = {"baseline": [], "fgm": ["fgm"], "ema": ["ema"], "all": ["fgm", "ema"]}
    results = {name: [by_hand(spec, tricks, seed, tmp_path) for seed in range(3)] for name, tricks in arms.items()}
    assert [arm["name"] for arm in record["arms"]] == list(arms)
    differences = [
        paired_difference([r["counts"] for r in results["baseline"]], [r["counts"] for r in results[name]])
        for name in list(arms)[1:]
    ]
    for arm, difference, verdict in zip(record["arms"][1:], differences, verdicts(differences), strict=True):
        assert arm["with"] == arms[arm["name"]]
        assert [s["value"] for s in arm["scores"]] == [r["value"] for r in results[arm["name"]]]
        assert [s["seed"] for s in arm["scores"]] == [0, 1, 2]
        assert arm["mean"] == pytest.approx(sum(r["value"] for r in results[arm["name"]]) / 3)
        told = arm["difference"]
        assert (told["mean"], told["low"], told["high"], told["p"]) == (
            difference.mean, difference.low, difference.high, difference.p,
        )  # fmt: skip
        assert (told["p_holm"], told["verdict"]) == (verdict.p_holm, verdict.verdict)
    assert any(arm["mean"] != record["arms"][0]["mean"] for arm in record["arms"])  # the tricks do something
    assert record["arms"][0]["difference"] is None
    assert (record["kind"], record["metric"], record["examples"]) == ("ablation", "accuracy", 60)
    assert record["seeds"] == [0, 1, 2]
    assert record["evaluated_on"] == "the test set" and record["command"] == "danlu ablate tag"
    assert record["failed"] == [] and record["machine"]["threads"] == 1 and record["machine"]["cpu"]
    assert json.loads((tmp_path / "out" / "ablation.json").read_text()) == record
    assert len(list((tmp_path / "out" / "trials").glob("*.json"))) == 12
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["ablation.json", "trials"]
    assert not (tmp_path / "out.partial").exists()


def test_without_a_test_set_half_of_dev_judges(spec, tmp_path):
    record = ablate({**spec, "test": None}, tmp_path / "out", tricks=["fgm"], seeds=1)
    assert record["evaluated_on"] == "a fixed half of dev that selection never saw"
    stored = json.loads((tmp_path / "out" / "trials" / "fgm-0.json").read_text())
    assert stored["identity"]["spec"]["evaluate_on"] == "half of dev"
    assert record["arms"][1]["difference"]["verdict"] == "too few seeds" and record["arms"][1]["std"] is None


def test_two_jobs_give_the_same_numbers_and_every_trial_the_same_threads(spec, tmp_path):
    spec["threads"] = 2
    one, two = ablate(spec, tmp_path / "one"), ablate(spec, tmp_path / "two", jobs=2)
    assert (one["settings"].pop("jobs"), two["settings"].pop("jobs")) == (1, 2)
    one_text, two_text = timeless(tmp_path / "one"), timeless(tmp_path / "two")
    assert one_text.replace('"jobs": 1', '"jobs": 2') == two_text
    for folder in ("one", "two"):
        for path in (tmp_path / folder / "trials").glob("*.json"):
            assert json.loads(path.read_text())["result"]["metrics"]["threads"] == "2"


def test_events_and_estimate(spec, tmp_path):
    events: list[dict] = []
    ablate(spec, tmp_path / "out", on_event=events.append)
    kinds = [e["event"] for e in events]
    assert kinds[0] == "plan" and kinds[-1] == "done" and kinds.count("trial") == 12 and kinds.count("estimate") == 1
    assert (events[0]["trials"], events[0]["stored"], events[0]["arms"][0]) == (12, 0, "baseline")
    assert kinds.index("estimate") == 2 and events[2]["of"] == "first trial"  # after the first baseline trial
    first = next(e for e in events if e["event"] == "trial")
    costs = [arm.cost for arm in plan(spec, ["fgm", "ema"], 3).arms]
    assert events[2]["seconds"] == pytest.approx(first["seconds"] * (3 * sum(costs) - 1))
    assert [e["done"] for e in events if e["event"] == "trial"] == list(range(1, 13))
    assert (first["arm"], first["seed"]) == ("baseline", 0) and events[-2]["left"] == 0


def test_known_time_is_told_before_the_start(spec, tmp_path):
    events: list[dict] = []
    ablate(spec, tmp_path / "out", tricks=["crf_lr"], seeds=2, jobs=2, on_event=events.append, baseline_seconds=10.0)
    assert [e["event"] for e in events][:2] == ["plan", "estimate"]
    assert (events[1]["seconds"], events[1]["of"]) == (pytest.approx(10 * 4 / 2), "caller")


def test_finish_writes_beside_the_record(spec, tmp_path):
    def page(record: dict, folder: Path) -> None:
        (folder / "index.html").write_text(record["title"])

    ablate(spec, tmp_path / "out", tricks=["fgm"], seeds=1, finish=page)
    assert (tmp_path / "out" / "index.html").read_text() == "tag: fgm against the baseline"


# ---------------------------------------------------------------- trouble


def test_a_failed_trial_is_recorded_and_resume_repeats_only_that(spec, tmp_path):
    whole = ablate(spec, tmp_path / "whole")
    log, mended = tmp_path / "log", tmp_path / "mended"
    spec["set"] = {"log": str(log), "trouble": {"fgm-1": f"unless:{mended}"}}
    events: list[dict] = []
    record = ablate(spec, tmp_path / "out", on_event=events.append)
    assert record["failed"] == [{"arm": "fgm", "seed": 1, "line": "the loss became NaN at step 7"}]
    assert [s["seed"] for s in record["arms"][1]["scores"]] == [0, 2]
    told = record["arms"][1]["difference"]
    assert (told["verdict"], told["seeds"]) == ("too few seeds", 2)
    assert any('"fgm" is compared on 2 of 3 seeds' in note for note in record["notes"])
    assert [e["line"] for e in events if e["event"] == "failed"] == ["the loss became NaN at step 7"]
    assert len(log.read_text().splitlines()) == 12  # the others went on
    with pytest.raises(InputError, match="already holds a result"):
        ablate(spec, tmp_path / "out")

    mended.touch()
    record = ablate(spec, tmp_path / "out", resume=True)
    assert log.read_text().splitlines()[12:] == [log.read_text().splitlines()[-1]] and record["failed"] == []
    assert [arm["difference"] for arm in record["arms"]] == [arm["difference"] for arm in whole["arms"]]


@pytest.mark.parametrize(
    ("trouble", "line"),
    [
        ("crash", "RuntimeError: a bug"),
        ("killed", r"killed by signal 9 \(SIGKILL, perhaps out of memory\)"),
        ("silent", "wrote no usable result .FileNotFoundError"),
        ("torn", "wrote no usable result .JSONDecodeError"),
        ("lies", r"its score is 0\.\d+, but its counts give 0\.\d+"),
    ],
)
def test_kinds_of_failure(spec, tmp_path, trouble, line):
    spec["set"] = {"trouble": {"fgm-1": trouble}}
    record = ablate(spec, tmp_path / "out", tricks=["fgm"], seeds=2)
    assert [f["arm"] for f in record["failed"]] == ["fgm"] and re.match(line, record["failed"][0]["line"])


def test_the_users_mistake_stops_all_at_once_and_leaves_nothing(spec, tmp_path):
    spec["set"] = {"log": str(tmp_path / "log"), "trouble": {"-0": "refuse"}}
    with pytest.raises(InputError, match=r"^epsilon must be > 0, got -0.5$"):
        ablate(spec, tmp_path / "out")
    assert len((tmp_path / "log").read_text().splitlines()) == 1
    assert sorted(p.name for p in tmp_path.iterdir()) == ["log", "train.txt"]


def test_no_baseline_no_report(spec, tmp_path):
    spec["set"] = {"trouble": {"-0": "fail", "-1": "fail"}}
    with pytest.raises(WorkError, match=r"no trial of the baseline ended well.*the loss became NaN"):
        ablate(spec, tmp_path / "out", tricks=["fgm"], seeds=2)
    assert not (tmp_path / "out").exists()
    spec["set"] = {"trouble": {"fgm-0": "fail"}}
    with pytest.raises(WorkError, match="any arm beside the baseline"):
        ablate(spec, tmp_path / "other", tricks=["fgm"], seeds=1)


def test_trials_of_different_examples_are_not_compared(spec, tmp_path):
    spec["set"] = {"trouble": {"fgm-0": "short"}}
    with pytest.raises(WorkError, match=r"different numbers of examples \(\[59, 60\]\)"):
        ablate(spec, tmp_path / "out", tricks=["fgm"], seeds=2)


def test_an_earlier_result_stays_until_the_new_one_is_there(spec, tmp_path):
    out = tmp_path / "out"
    ablate(spec, out, tricks=["fgm"], seeds=1)
    before = (out / "ablation.json").read_bytes()
    with pytest.raises(InputError, match="--overwrite replaces it"):
        ablate(spec, out, tricks=["fgm"], seeds=1)
    with pytest.raises(InputError, match="nothing is left to resume"):
        ablate(spec, out, tricks=["fgm"], seeds=1, resume=True)
    with pytest.raises(InputError, match=r"got -0\.5"):
        ablate({**spec, "set": {"trouble": {"-0": "refuse"}}}, out, tricks=["fgm"], seeds=1, overwrite=True)
    assert (out / "ablation.json").read_bytes() == before
    record = ablate(spec, out, tricks=["ema"], seeds=1, overwrite=True)
    assert [a["name"] for a in record["arms"]] == ["baseline", "ema"]
    assert sorted(p.name for p in (out / "trials").iterdir()) == ["baseline-0.json", "ema-0.json"]


def interrupted(spec: dict, out: Path, after: int, **options) -> None:
    """An ablation that stops after so many trials, as Ctrl-C does."""
    left = [after]

    def stop(event: dict) -> None:
        left[0] -= event["event"] == "trial"
        if left[0] == 0:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        ablate(spec, out, on_event=stop, **options)


def test_resume_refuses_other_settings(spec, tmp_path):
    out = tmp_path / "out"
    interrupted(spec, out, 3)
    with pytest.raises(InputError, match=r"unfinished run; --resume goes on with it, --overwrite starts again"):
        ablate(spec, out)
    with pytest.raises(InputError, match=r"\(model was None, is now 'dgcnn'\); give the settings of the first"):
        ablate({**spec, "model": "dgcnn"}, out, resume=True)
    with pytest.raises(InputError, match=r"trial ema-0 is not in this plan"):
        ablate(spec, out, tricks=["fgm"], resume=True)
    points(Path(spec["train"]), seed=1)
    with pytest.raises(InputError, match=r"content of the file given as --train changed"):
        ablate(spec, out, resume=True)
    assert len(list((tmp_path / "out.partial" / "trials").iterdir())) == 3
    ablate(spec, out, overwrite=True)


def test_resume_keeps_what_ended_and_may_add_seeds(spec, tmp_path):
    spec["set"] = {"log": str(tmp_path / "log")}
    interrupted(spec, tmp_path / "out", 5)
    events: list[dict] = []
    record = ablate(spec, tmp_path / "out", seeds=4, resume=True, on_event=events.append)
    assert events[0]["stored"] == 5 and (events[1]["event"], events[1]["of"]) == ("estimate", "stored trials")
    started = [line.split()[1] for line in (tmp_path / "log").read_text().splitlines()]
    assert len(set(started)) == 16 and len(started) <= 17  # one trial was in flight
    ablate(spec, tmp_path / "whole", seeds=4)
    assert timeless(tmp_path / "out") == timeless(tmp_path / "whole")
    assert record["seeds"] == [0, 1, 2, 3]


def test_a_torn_stored_trial_is_run_again(spec, tmp_path):
    interrupted(spec, tmp_path / "out", 2)
    (tmp_path / "out.partial" / "trials" / "baseline-0.json").write_text('{"key"')
    (tmp_path / "out.partial" / "trials" / "fgm-0.json.77.tmp").write_text("{")
    assert ablate(spec, tmp_path / "out", resume=True)["failed"] == []
    assert all(p.suffix == ".json" for p in (tmp_path / "out" / "trials").iterdir())


# ---------------------------------------------------------------- in a process of its own

DRIVER = """
import json, sys
from pathlib import Path
from danlu.tasks.ablate import run_ablation
import signal
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job would inherit "ignore"
ask = json.loads(sys.argv[1])
if ask.get("limit"):
    import resource
    resource.setrlimit(resource.RLIMIT_FSIZE, (ask["limit"], ask["limit"]))
try:
    run_ablation(ask["spec"], ["fgm", "ema"], ask["seeds"], Path(ask["out"]), jobs=ask["jobs"], engine=ask["engine"],
                 resume=True, command=ask["command"], on_event=lambda e: print(e["event"], flush=True))
except Exception as error:
    print(type(error).__name__, error, flush=True)
    raise SystemExit(1)
"""


def driver(spec: dict, out: Path, jobs: int = 2, engine: str = "local", **options) -> subprocess.Popen:
    ask = {"spec": spec, "out": str(out), "jobs": jobs, "engine": engine, "seeds": 3, "command": COMMAND, **options}
    return subprocess.Popen([sys.executable, "-c", DRIVER, json.dumps(ask)], stdout=subprocess.PIPE, text=True)


def events_until(process: subprocess.Popen, event: str, times: int = 1) -> bool:
    """Read events until one came so often; False when the process ended before."""
    for line in process.stdout:
        times -= line.startswith(event)
        if times <= 0:
            return True
    return False


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def all_gone(pids: list[int], seconds: float = 5.0) -> bool:
    end = time.monotonic() + seconds
    while time.monotonic() < end and any(map(alive, pids)):
        time.sleep(0.02)
    return not any(map(alive, pids))


def test_kill_9_at_random_moments_then_resume_equals_uninterrupted(spec, tmp_path):
    log, jobs, rng = tmp_path / "log", 2, random.Random()
    spec["set"] = {"log": str(log), "sleep": 0.05}
    kills = 0
    for _ in range(3):
        process = driver(spec, tmp_path / "out", jobs)
        if events_until(process, "trial", rng.randint(1, 3)):
            time.sleep(rng.random() * 0.1)
            kills += process.poll() is None
        process.kill()
        process.communicate()
        pids = [int(line.split()[0]) for line in log.read_text().splitlines()]
        if sys.platform == "linux":
            assert all_gone(pids)  # no trial outlives its ablation
    process = driver(spec, tmp_path / "out", jobs)
    process.communicate(timeout=60)
    if not (tmp_path / "out").exists():
        pytest.fail("the resumed ablation did not end")
    started = [line.split()[1] for line in log.read_text().splitlines()]
    assert set(started) == {f"{arm}-{seed}" for arm in ("", "fgm", "ema", "fgm+ema") for seed in range(3)}
    assert len(started) <= 12 + kills * jobs
    ablate(spec, tmp_path / "whole", jobs=jobs)
    assert timeless(tmp_path / "out") == timeless(tmp_path / "whole")


@pytest.mark.skipif(os.name != "posix", reason="signals of POSIX")
def test_ctrl_c_ends_the_trials_and_frees_the_folder(spec, tmp_path):
    log = tmp_path / "log"
    spec["set"] = {"log": str(log), "sleep": 60}
    process = driver(spec, tmp_path / "out")
    assert events_until(process, "plan")
    end = time.monotonic() + 30
    while time.monotonic() < end and (not log.exists() or len(log.read_text().splitlines()) < 2):
        time.sleep(0.02)
    with pytest.raises(InputError, match="another run is writing"):
        ablate(spec, tmp_path / "out", resume=True)
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=20)
    assert all_gone([int(line.split()[0]) for line in log.read_text().splitlines()])
    assert ablate({**spec, "set": {}}, tmp_path / "out", seeds=1)["failed"] == []


@pytest.mark.skipif(os.name != "posix", reason="limits of POSIX")
def test_a_full_disk_is_told_and_what_ended_is_kept(spec, tmp_path):
    ablate(spec, tmp_path / "whole")
    limit = (tmp_path / "whole" / "ablation.json").stat().st_size - 200  # trials fit, the report does not
    assert all(p.stat().st_size < limit for p in (tmp_path / "whole" / "trials").iterdir())
    process = driver(spec, tmp_path / "out", limit=limit)
    said = process.communicate(timeout=60)[0].splitlines()[-1]
    assert process.returncode == 1
    assert said.startswith("WorkError could not write the ablation") and "--resume goes on" in said
    assert len(list((tmp_path / "out.partial" / "trials").glob("*.json"))) == 12
    ablate(spec, tmp_path / "out", resume=True, jobs=1)
    assert timeless(tmp_path / "out") == timeless(tmp_path / "whole")


def test_ray_gives_the_same_numbers(spec, tmp_path):
    pytest.importorskip("ray", reason="Ray is not installed")
    process = driver(spec, tmp_path / "ray", engine="ray")  # not in this process: Ray starts daemons and threads
    said = process.communicate(timeout=120)[0]
    assert process.returncode == 0, said
    ablate(spec, tmp_path / "local", jobs=2)
    assert timeless(tmp_path / "ray") == timeless(tmp_path / "local").replace('"engine": "local"', '"engine": "ray"')


def test_the_real_trial(tmp_path):
    text = "我 爱 北京 天安门\n他 在 上海 工作\n我们 去 公园 玩\n北京 的 公园 很 大\n"
    for name, times in (("train", 6), ("dev", 1), ("test", 1)):
        (tmp_path / f"{name}.txt").write_text(text * times, encoding="utf-8")
    spec = {
        "task": "tag", "model": "dgcnn:1x8", "device": "cpu", "precision": "fp32",
        "set": {"epochs": 1, "batch_size": 8},
        **{name: str(tmp_path / f"{name}.txt") for name in ("train", "dev", "test")},
    }  # fmt: skip
    record = run_ablation(spec, ["ema"], 1, tmp_path / "out")
    assert record["failed"] == [] and record["metric"] == "f1" and record["examples"] == 4
    assert 0 <= record["arms"][0]["mean"] <= 1 and record["arms"][1]["difference"]["verdict"] == "too few seeds"
    shutil.rmtree(tmp_path / "out")
