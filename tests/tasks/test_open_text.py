"""Text without what is measured on: shared runs against a search of substrings, what goes, what stays, the record."""

import gzip
import hashlib
import json
import random

import pytest

from danlu.data.errors import InputError
from danlu.tasks.open_text import RUN, SHORT, Runs, assemble, kept_parts

STREAM = random.Random(0)


def line(n, stream=STREAM):
    return "".join(chr(0x4E00 + stream.randrange(3000)) for _ in range(n))


def touched_by_hand(text, known):  # oracle: every run of 20 as a Python string, blanks left out
    runs = set()
    for other in known:
        solid = "".join(other.split())
        runs |= {solid[i : i + RUN] for i in range(len(solid) - RUN + 1)}
    places = [i for i, c in enumerate(text) if not c.isspace()]
    touched = [False] * len(text)
    for i in range(len(places) - RUN + 1):
        if "".join(text[p] for p in places[i : i + RUN]) in runs:
            for p in range(places[i], places[i + RUN - 1] + 1):
                touched[p] = True
    return touched


def runs_of(*texts):
    runs = Runs()
    runs.add(list(texts))
    runs.close()
    return runs


def test_shared_runs_equal_a_search_of_substrings():
    stream = random.Random(1)
    known = [line(n, stream) for n in (5, 19, 20, 21, 80)]
    known.append(" ".join(known[4][:30]))  # with blanks: the same runs
    cut = [
        known[4][3:23],
        known[4][3:22],
        known[3],
        known[2][:10] + " \n" + known[2][10:],
        known[1],
        known[4][60:] + known[3],
    ]
    runs = runs_of(*known)
    some = 0
    for _ in range(60):
        text = "".join(stream.choice([*cut, line(7, stream)]) for _ in range(4))
        found = runs.shared(text).tolist()
        assert found == touched_by_hand(text, known)
        some += any(found) and not all(found)
    assert some > 20
    assert not runs.shared("").any() and not runs.shared("短").any()


def test_short_documents_go_whole_and_long_ones_lose_what_is_shared():
    secret = line(25)
    runs = runs_of(secret)
    clean, other = line(SHORT + 50), line(40)
    assert kept_parts([clean], runs) == ([clean], 0)
    assert kept_parts([other, "前" + secret], runs) == ([], 40 + 26)
    kept, gone = kept_parts([clean, "前" + secret + "后", other], runs)
    assert kept == [clean, other] and gone == 27
    paragraph = f"{clean}。{other}{secret}！{other}。"
    assert kept_parts([paragraph], runs) == ([f"{clean}。", f"{other}。"], 40 + 25 + 1)


def test_a_run_over_the_end_of_a_paragraph_is_found():
    secret = line(24)
    runs = runs_of(secret)
    a, b, c = line(200) + secret[:12], secret[12:] + line(200), line(200)
    assert kept_parts([a, b, c], runs)[0] == [c]
    assert kept_parts([a, c, b], runs)[1] == 0


@pytest.fixture
def data(tmp_path):
    """A small $DANLU_DATA: an open set, one that is not open, one without a split."""
    stream = random.Random(2)
    rows = [line(60, stream) for _ in range(300)]
    secret = {name: line(40, stream) for name in ("own dev", "closed test", "open json")}
    unsplit = [line(40, stream) for _ in range(40)]  # 0 and 1 of the hash are test and dev
    part = {text: int.from_bytes(hashlib.sha256(text.encode()).digest(), "big") % 10 for text in unsplit}
    secret |= {
        "by hash": next(t for t in unsplit if part[t] == 0),
        "by hash too": next(t for t in unsplit if part[t] == 1),
    }
    rows.append(next(t for t in unsplit if part[t] > 1))

    def put(name, file, content):
        path = tmp_path / "data" / name / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(gzip.compress(content.encode()))
        return f"{name}/{file}"

    def entry(name, licence, files, language="zh"):
        return {"name": name, "openly_licensed": licence, "language": language, "license": "MIT", "source_repo": "a/b",
                "files": [{"file": put(name, file, text), "split": split} for file, split, text in files]}  # fmt: skip

    def table(texts):
        return "".join(json.dumps({"text": text}) + "\n" for text in texts)

    train = [*rows, rows[0], *(f"头{text}尾" for text in secret.values())]
    manifest = [
        entry("open", "yes", [("train.jsonl.gz", "train", table(train)),
                              ("dev.jsonl.gz", "dev", table([secret["own dev"]]))]),
        entry("closed", "unclear", [("train.jsonl.gz", "train", table([line(50, stream)])),
                                    ("test.jsonl.gz", "test", table(["x", secret["closed test"]]))]),
        entry("read", "yes", [("dev.json.gz", "dev", json.dumps({"a": [{"b": list(secret["open json"])}]}))], "zh (x)"),
        entry("whole", "unclear", [("all.jsonl.gz", "all (no official split)", table(unsplit))]),
        entry("novels", "yes", [("n.txt.gz", "train", "\n\n".join(line(700, stream) for _ in range(9)))]),
    ]  # fmt: skip
    (tmp_path / "data" / "MANIFEST.json").write_text(json.dumps(manifest))
    return tmp_path, rows, secret


def test_nothing_measured_enters(data, tmp_path, monkeypatch):
    root, rows, secret = data
    splits = type("S", (), {"train": [], "dev": [], "test": []})
    monkeypatch.setattr("danlu.tasks.open_text.load_peoples_daily", lambda: splits)
    monkeypatch.setattr("danlu.tasks.open_text.load_reviews", lambda: splits)
    record = assemble(tmp_path / "out", root)
    train, held = ((tmp_path / "out" / f"{part}.txt").read_text() for part in ("train", "held_out"))
    for text in secret.values():
        assert text not in train + held and f"头{text}尾" not in train + held
    assert all((row in train) != (row in held) for row in rows)
    assert sum(train.count(row) + held.count(row) for row in rows) == len(rows)  # the repeated one once
    by_name = {s["name"]: s for s in record["sources"]}
    assert set(by_name) == {"open", "novels", "peoples-daily", "reviews"}
    assert by_name["open"]["measured_characters"] == 5 * 42 and by_name["open"]["repeated_characters"] == 60
    assert by_name["open"]["characters"] + by_name["open"]["held_out_characters"] == 300 * 60 + 40
    assert 0 < len(held.splitlines()) < 15
    assert by_name["novels"]["documents"] + by_name["novels"]["held_out_documents"] == 3
    assert record["characters"] == sum(len("".join(part.split())) for part in train.splitlines())
    assert json.loads((tmp_path / "out" / "sources.json").read_text()) == record


def test_a_folder_without_manifest(tmp_path):
    with pytest.raises(InputError, match="set DANLU_DATA to the folder that holds data"):
        assemble(tmp_path / "out", tmp_path)
