"""Report pages: parsed back, every number found as printed, every key dropped in turn, foreign text harmless."""

import builtins
import copy
import json
import math
import os
import re
from html.parser import HTMLParser

import pytest

from danlu.gallery.formats import count, duration, number, p_value, ratio, signed
from danlu.gallery.page import ablation_page, environment, report_page, training_page, write_page

VOID = {"meta", "link", "br", "hr", "img", "input"}


class Page(HTMLParser):
    """Checks that tags balance; collects visible text, headings, ids, classes and attributes."""

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.words: list[str] = []
        self.headings: list[str] = []
        self.ids: list[str] = []
        self.attributes: list[tuple[str, str, str]] = []
        self.tags: list[str] = []
        self.feed(html)
        self.close()
        assert not self.open, f"never closed: {self.open}"
        assert len(self.ids) == len(set(self.ids))
        self.text = re.sub(r"\s+", " ", " ".join(self.words)).replace("\u2060", "")

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(tag, k, v or "") for k, v in attrs]
        self.ids += [v for k, v in attrs if k == "id"]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(tag, k, v or "") for k, v in attrs]

    def handle_endtag(self, tag):
        assert self.open and self.open.pop() == tag, f"</{tag}> closes nothing"

    def handle_data(self, data):
        if self.open and self.open[-1] not in ("script", "style"):
            self.words.append(data)
            if self.open[-1] == "h2":
                self.headings.append(data)


def shows(page: Page, *texts: str) -> None:
    missing = [t for t in texts if t not in page.text]
    assert not missing, f"not on the page: {missing}"


def test_every_number_of_a_training_record_is_on_its_page(tagger):
    page = Page(training_page(tagger))
    for split in tagger["metrics"].values():
        shows(page, *(number(v) for k, v in split.items() if k != "by_type"))
    for row in tagger["metrics"]["test"]["by_type"].values():
        shows(page, number(row["precision"]), number(row["recall"]), number(row["f1"]), count(row["support"]))
    for row in tagger["log"]:
        if "dev" in row:
            shows(page, count(row["step"]), *(number(v) for v in row["dev"].values()))
    for line in tagger["confusion"]["matrix"]:
        shows(page, *map(count, line))
    for i, line in enumerate(tagger["transitions"]["matrix"]):
        shows(page, *(f"{v:.2f}".replace("-", "−") for v in line if abs(v) < 10), tagger["transitions"]["labels"][i])
    for b in tagger["calibration"]["bins"]:
        shows(page, number(b["confidence"]), number(b["accuracy"]), count(b["count"]))
    for d in tagger["data"]:
        shows(page, d["name"], count(d["examples"]), count(d["tokens"]), count(d["skipped"]))
    shows(page, *(number(e["loss"]) for e in tagger["worst"]), *(duration(s) for s in tagger["seconds"].values()))
    shows(
        page,
        count(tagger["parameters"]),
        tagger["command"],
        tagger["title"],
        "Intel Xeon",
        "fgm:0.5, ema, crf_lr:100",
        "schedule.warmup 120",
    )
    assert page.headings == [
        "Scores",
        "Learning curves",
        "Worst examples",
        "Confusion",
        "Transitions",
        "Calibration",
        "Reproduce",
        "Data",
        "Settings",
        "Machine and time",
    ]


def test_every_number_of_an_ablation_is_on_its_page(ablation):
    page = Page(ablation_page(ablation))
    base = ablation["arms"][0]
    for arm in ablation["arms"]:
        shows(
            page,
            arm["name"],
            number(arm["mean"]),
            number(arm["std"]),
            duration(arm["seconds"]),
            count(arm["memory_mb"]),
        )
        shows(
            page,
            *(number(s["value"]) for s in arm["scores"]),
            ratio(arm["seconds"], base["seconds"]),
            ratio(arm["memory_mb"], base["memory_mb"]),
        )
        if arm["difference"]:
            d = arm["difference"]
            shows(
                page,
                signed(d["mean"]),
                f"{signed(d['low'])} to {signed(d['high'])}",
                p_value(d["p"]),
                p_value(d["p_holm"]),
                d["verdict"],
            )
    shows(
        page,
        "▲ Help: fgm:0.5 (+0.0109), all (+0.0083).",
        "▼ Hurts: noise:0.5 (−0.0081).",
        "○ No evidence of an effect: ema, crf_lr:100.",
    )
    shows(
        page,
        *(f"seed {s}" for s in ablation["seeds"]),
        ablation["notes"][0],
        ablation["command"],
        "270 examples",
        "5 seeds an arm",
    )
    assert page.headings == ["Verdicts", "Seed by seed", "Cost", "Reproduce", "Data", "Settings", "Machine and time"]


def test_seed_dots_are_paired_by_seed_not_by_place(ablation):
    ablation["arms"][1]["scores"].reverse()
    page = Page(ablation_page(ablation))
    shows(page, "+0.0112", "+0.0081", "+0.0135", "+0.0098", "+0.0121")  # tooltips of the dots


@pytest.mark.parametrize("fixture", ["tagger", "classifier", "segmenter", "ablation"])
@pytest.mark.parametrize("drop", ["missing", None, "empty"])
def test_any_key_may_be_absent(fixture, drop, request):
    record = request.getfixturevalue(fixture)
    for key in [k for k in record if k != "kind"]:
        smaller = copy.deepcopy(record)
        if drop == "missing":
            del smaller[key]
        else:
            smaller[key] = None if drop is None else type(record[key])()
        Page(report_page(smaller))


@pytest.mark.parametrize(
    ("key", "heading"),
    [
        ("metrics", "Scores"),
        ("log", "Learning curves"),
        ("worst", "Worst examples"),
        ("confusion", "Confusion"),
        ("transitions", "Transitions"),
        ("calibration", "Calibration"),
        ("command", "Reproduce"),
        ("data", "Data"),
        ("settings", "Settings"),
    ],
)
def test_a_missing_key_drops_exactly_its_section(tagger, key, heading):
    before = Page(training_page(tagger)).headings
    del tagger[key]
    assert Page(training_page(tagger)).headings == [h for h in before if h != heading]


@pytest.mark.parametrize("kind", ["train", "ablation"])
def test_the_bare_kind_makes_a_page(kind):
    assert Page(report_page({"kind": kind})).headings == []


def mutilate(value, with_):
    if isinstance(value, dict):
        return {k: mutilate(v, with_) for k, v in value.items()}
    if isinstance(value, list):
        return [mutilate(v, with_) for v in value]
    return with_ if isinstance(value, float) else value


@pytest.mark.parametrize("fixture", ["tagger", "classifier", "segmenter", "ablation"])
@pytest.mark.parametrize("bad", [math.nan, None, math.inf, -math.inf])
def test_no_float_at_all_is_survived_and_never_printed(fixture, bad, request):
    page = Page(report_page(mutilate(request.getfixturevalue(fixture), bad)))
    assert not re.search(r"\b(nan|None|inf)\b", page.text.replace("Nan", ""))
    drawing = [
        v
        for tag, k, v in page.attributes
        if tag in ("path", "line", "circle", "rect", "text", "svg") and k not in ("class", "aria-label")
    ]
    assert not any("nan" in v or "inf" in v for v in drawing)


def test_a_record_survives_json(tagger):
    tagger["metrics"]["test"]["loss"] = math.nan
    assert training_page(json.loads(json.dumps(tagger))) == training_page(tagger)


BAD = (
    "</title></script><script>alert(1)</script><img src=x onerror=alert(2)>\" onmouseover='alert(3)' {{ 7*7 }} "
    "\x00\x1b \u202e \ud800 & &amp;"
)


def poison(value):
    if isinstance(value, dict):
        return {k if k in KEPT else k + BAD: poison(v) if k != "kind" else v for k, v in value.items()}
    if isinstance(value, list):
        return [poison(v) for v in value]
    return value + BAD if isinstance(value, str) else value


KEPT = set(
    re.findall(
        r"\w+",
        """kind title command task metric seeds examples evaluated_on arms data machine settings created danlu
    seconds notes name with scores mean std memory_mb difference seed value low high p p_holm verdict
    role tokens skipped parameters metrics dev test f1 precision recall accuracy loss ece macro_f1
    by_type support log step epoch lr transitions labels matrix illegal confusion calibration bins
    confidence count worst text gold pred""",
    )
)


@pytest.mark.parametrize("fixture", ["tagger", "classifier", "segmenter", "ablation"])
def test_nothing_of_the_users_becomes_markup(fixture, request):
    record = request.getfixturevalue(fixture)
    clean, page = Page(report_page(record)), Page(html := report_page(poison(record)))
    assert page.tags.count("script") == 1 and "img" not in page.tags
    assert set(page.tags) <= set(clean.tags) | {"span", "mark"}
    assert not [a for a in page.attributes if a[1].startswith("on")]
    shows(page, "{{ 7*7 }}", "<script>alert(1)</script>", "&amp;")
    assert not re.search("[\x00-\x08\u202e\ud800]", html)
    html.encode("utf-8")


@pytest.mark.parametrize("fixture", ["tagger", "ablation"])
def test_the_page_asks_for_nothing_from_outside(fixture, request):
    html = report_page(request.getfixturevalue(fixture), [("Ablation", "ablation.html")])
    page = Page(html)
    assert [v for _, k, v in page.attributes if k in ("src", "href", "srcset", "action", "data")] == [
        "data:,",
        "ablation.html",
    ]
    assert "@import" not in html and "url(" not in html and "http:" not in html and "https:" not in html
    policy = next(v for t, k, v in page.attributes if t == "meta" and k == "content" and "default-src" in v)
    assert "default-src 'none'" in policy and "script-src 'sha256-" in policy


@pytest.mark.parametrize(
    "address",
    [
        "https://example.org/x",
        "javascript:alert(1)",
        "//example.org",
        "/etc/passwd",
        " javascript:alert(1)",
        "\\\\host\\x",
        "data:text/html,x",
    ],
)
def test_a_link_that_leaves_the_folder_is_refused(address):
    with pytest.raises(ValueError, match=r"the link 'x' points to .*relative address such as 'ablation.html'"):
        training_page({"kind": "train"}, [("x", address)])


def test_kinds_are_checked_and_the_message_says_where_to_go(tagger, ablation):
    with pytest.raises(ValueError, match="of kind 'ablation', got 'train'; use report_page or training_page"):
        ablation_page(tagger)
    with pytest.raises(ValueError, match="of kind 'train', got 'ablation'; use report_page or ablation_page"):
        training_page(ablation)
    with pytest.raises(
        ValueError, match="no page for a record of kind 'recipe'; a page is made of kind 'train' or 'ablation'"
    ):
        report_page({"kind": "recipe"})
    assert report_page(tagger) == training_page(tagger) and report_page(ablation) == ablation_page(ablation)


def test_pages_are_pure(tagger, ablation):
    for record in (tagger, ablation):
        before = copy.deepcopy(record)
        assert report_page(record) == report_page(record)
        assert record == before


def test_without_jinja2_the_extra_is_named(monkeypatch):
    original = builtins.__import__

    def without(name, *rest):
        if name.split(".")[0] == "jinja2":
            raise ImportError(name)
        return original(name, *rest)

    environment.cache_clear()
    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ImportError, match=r'pip install "danlu\[plots\]"'):
        training_page({"kind": "train"})


def test_entities_are_marked_in_place(tagger):
    html = training_page(tagger)
    sentence = html.split('<p class="sentence"')[3]
    assert re.search(
        r'昨天<mark class="spurious">晚上[^<]*<span class="tag">PER spurious</span></mark>在<mark class="correct">朝阳',
        sentence,
    )
    assert re.search(r'<mark class="missed">华谊[^<]*<span class="tag">ORG missed', sentence)
    assert re.search(r'<mark class="wrong">广州[^<]*<span class="tag">GPE → LOC', html)


def test_words_stand_one_under_the_other(segmenter):
    html = training_page(segmenter)
    assert html.count('class="chunk differs"') == 1 + 5  # the legend's and five places of the sample
    shows(Page(html), "[gold: 北京大学 | 生 , predicted: 北京大学生 ]")


def test_correct_and_wrong_labels_of_a_classifier(classifier):
    classifier["worst"].append({"text": "对", "gold": "体育", "pred": "体育", "confidence": 0.2})
    assert training_page(classifier).count('<b class="bad"') == 3


def test_long_texts_are_folded_and_say_how_much(tagger, segmenter, classifier):
    long = "甲" * 5000
    tagger["worst"] = [{"text": long + "张三" + long, "gold": [[5000, 5002, "PER"]], "pred": [], "loss": 1.0}]
    page = Page(html := training_page(tagger))
    shows(page, "⋯ 4,880 characters ⋯", "张三")
    assert html.count("甲") == 4 * 60
    segmenter["worst"] = [
        {
            "text": long,
            "gold": [[i, i + 1, ""] for i in range(5000)],
            "pred": [[i, i + 1, ""] for i in range(4998)] + [[4998, 5000, ""]],
            "loss": 1.0,
        }
    ]
    shows(Page(training_page(segmenter)), "⋯ 4,938 characters ⋯")
    classifier["worst"][0]["text"] = long
    shows(Page(training_page(classifier)), "⋯ 4,880 characters ⋯")


def test_a_span_outside_its_text_fails_by_name(tagger):
    tagger["worst"][0]["pred"] = [[0, 999, "PER"]]
    with pytest.raises(ValueError, match=r"predicted span \(0, 999, 'PER'\) does not lie"):
        training_page(tagger)


def test_one_arm_thirty_arms_sixty_labels(ablation, tagger):
    many = copy.deepcopy(ablation)
    many["arms"] = [dict(copy.deepcopy(ablation["arms"][i % 5 and 1]), name=f"arm{i}") for i in range(30)]
    assert ablation_page(many).count('<tr role="row"') == 31
    ablation["arms"] = ablation["arms"][:1]
    page = Page(ablation_page(ablation))
    assert "Help" not in page.text
    shows(page, "baseline", number(ablation["arms"][0]["mean"]))
    labels = [f"I-类型{i}" for i in range(60)]
    tagger["transitions"] = {"labels": labels, "matrix": [[float(i - j) for j in range(60)] for i in range(60)]}
    tagger["confusion"] = {"labels": labels, "matrix": [[i * j for j in range(60)] for i in range(60)]}
    page = Page(training_page(tagger))
    shows(page, "I-类型3 → I-类型59: −56.0", "I-类型59 → I-类型58: 3,422")
    assert "Outlined cells" not in page.text


def test_a_failed_trial_says_failed_and_a_missing_one_a_dash(ablation):
    ablation["arms"][1]["scores"][0]["value"] = None
    del ablation["arms"][2]["scores"][0]
    page = Page(ablation_page(ablation))
    assert page.text.count("failed") == 1
    ablation["arms"][1]["difference"] = None
    ablation["failed"] = [{"arm": "ema", "seed": 11, "line": "danlu: the loss is not finite at step 7"}]
    page = Page(ablation_page(ablation))
    shows(page, "not measured", "Failed: ema, seed 11. danlu: the loss is not finite at step 7")
    assert page.text.count("failed") == 2


def test_too_few_seeds_has_its_own_word_and_no_bar(ablation):
    for arm in ablation["arms"][1:]:
        arm["difference"].update(low=None, high=None, p=None, p_holm=None, verdict="too few seeds")
    page = Page(ablation_page(ablation))
    shows(page, "◇ Too few seeds: fgm:0.5, ema", "– to –")


def test_a_metric_that_falls_when_it_improves_turns_the_axis(ablation):
    def ends(metric):
        html = ablation_page({**ablation, "metric": metric})
        return re.findall(r">(?:← )?(better|worse)(?: →)?<", html)

    assert ends("f1") == ["worse", "better"] and ends("loss") == ["better", "worse"]


def test_an_enormous_interval_does_not_flatten_the_others(ablation):
    ablation["arms"][2]["difference"].update(low=-9.0, high=9.0)
    html = ablation_page(ablation)
    bar = re.search(r'<line class="helps bar" x1="([\d.]+)" y1="14.0" x2="([\d.]+)"', html)
    assert float(bar[2]) - float(bar[1]) > 20


def test_chinese_is_announced_as_chinese(classifier):
    html = training_page(classifier)
    assert re.search(r'lang="zh">国足', html) and re.search(r'lang="">The Economics', html)


def test_write_page_is_whole_or_not_at_all(tmp_path, monkeypatch):
    path = tmp_path / "报告.html"
    write_page("<p>一</p>\n", path)
    assert path.read_bytes() == "<p>一</p>\n".encode() and path.stat().st_mode & 0o777 == 0o644
    path.chmod(0o600)
    with pytest.raises(UnicodeEncodeError):
        write_page("\ud800", path)
    monkeypatch.setattr(os, "replace", lambda *a: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        write_page("new", path)
    monkeypatch.undo()
    assert [p.name for p in tmp_path.iterdir()] == ["报告.html"] and path.read_text(encoding="utf-8") == "<p>一</p>\n"
    write_page("new", str(path))
    assert path.read_text() == "new" and path.stat().st_mode & 0o777 == 0o600
    with pytest.raises(FileNotFoundError):
        write_page("x", tmp_path / "missing" / "page.html")


def cells(html: str, heading: str) -> list[tuple[str, float, str]]:
    """(colour, opacity, tooltip) of the painted cells of one heat map."""
    part = html.split(f'<h2 id="{heading}">')[1].split("</section>")[0]
    found = re.findall(r'<rect class="(pos|neg)" fill-opacity="([\d.]+)"[^>]*><title>([^<]*)', part)
    return [(tone, float(alpha), tip) for tone, alpha, tip in found]


def test_confusion_is_blue_on_the_diagonal_and_shaded_by_row(tagger):
    tagger["confusion"] = {"labels": ["A", "B"], "matrix": [[3, 1], [0, 500]]}
    assert cells(training_page(tagger), "confusion") == [
        ("pos", 0.6, "A → A: 3"),
        ("neg", 0.2, "A → B: 1"),
        ("pos", 0.8, "B → B: 500"),
    ]


def test_transitions_are_shaded_against_the_largest_legal_score(tagger):
    matrix, illegal = [[2.0, -10000.0], [-1.0, 0.5]], [[False, True], [False, False]]
    tagger["transitions"] = {"labels": ["B", "I"], "matrix": matrix, "illegal": illegal}
    html = training_page(tagger)
    assert [(t, a) for t, a, _ in cells(html, "transitions")] == [
        ("pos", 0.8),
        ("neg", 0.8),
        ("neg", 0.4),
        ("pos", 0.2),
    ]
    assert len(re.findall(r'class="outlined" d="M[^M]*"', html)) == 1
    shows(Page(html), "B → I: −10k", "Outlined cells are forbidden")


def test_the_best_evaluation_is_the_highest(tagger):
    best = max(row["dev"]["f1"] for row in tagger["log"] if "dev" in row)
    shows(Page(training_page(tagger)), f"best {number(best)}")


def test_counts_among_the_metrics_stay_counts_and_untyped_spans_need_no_table(segmenter):
    whole = {"precision": 0.9, "recall": 0.9, "f1": 0.9, "support": 103464}
    segmenter["metrics"]["test"] |= {"tokens": 169728, "unknown_tokens": 37, "by_type": {"": whole}}
    page = Page(training_page(segmenter))
    shows(page, "tokens 169,728", "unknown tokens 37 ", "Support 103,464")
    assert "By type" not in page.text


def test_curves_share_their_steps_and_the_learning_rate_is_linear(tagger):
    tagger["log"] = [{"step": s, "loss": 1.0 / s, "lr": 10.0**-s} for s in (1, 2, 3)] + [
        {"step": 2, "dev": {"f1": 0.5}}
    ]
    html = training_page(tagger)
    assert "learning rate<" in html
    (x,) = re.findall(r'<circle class="best" cx="([\d.]+)"', html)
    left, right = re.findall(r'<line class="axis" x1="([\d.]+)" y1="198" x2="(\d+)" y2="198"/>', html)[1]
    assert float(x) == pytest.approx((float(left) + float(right)) / 2, abs=0.1)


@pytest.mark.parametrize(
    ("stamp", "text"),
    [
        ("2026-11-21T13:53:59+00:00", "2026-11-21 13:53 UTC"),
        ("2026-11-21T23:53:59+08:00", "2026-11-21 15:53 UTC"),
        ("2026-11-21T13:53", "2026-11-21 13:53"),
        ("昨天", "昨天"),
    ],
)
def test_the_time_is_for_people(stamp, text):
    assert f"<span>{text}</span>" in training_page({"kind": "train", "created": stamp})
