"""Readers: every format, the files a user gets wrong with file, line, field and way out, real corpora."""

import gzip
import json

import pytest

from danlu.data.errors import InputError
from danlu.data.labelled import read_labelled
from danlu.data.tagged import Labelled, Tagged, join_tokens
from danlu.data.tagging import read_tagged
from danlu.math.tag_scheme import spans


@pytest.fixture
def write(tmp_path):
    def make(name, data):
        path = tmp_path / name
        if not isinstance(data, (str, bytes)):
            data = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in data)
        path.write_bytes(data if isinstance(data, bytes) else data.encode("utf-8"))
        return path

    return make


def test_conll(write):
    text = "-DOCSTART- -X- O\n\n# text = 我在\n我 rr O\n在 p O\n\n\n北 ns B-LOC\n京 ns I-LOC\n# w O\n"
    corpus = read_tagged(write("a.conll", text))
    assert corpus.examples == [
        Tagged(("我", "在"), ("O", "O"), "我在", 4),
        Tagged(("北", "京", "#"), ("B-LOC", "I-LOC", "O"), "北京#", 8),
    ]
    assert (corpus.format, corpus.scheme, corpus.labels) == ("conll", "BIO", ["B-LOC", "I-LOC", "O"])
    assert len(corpus) == 2


def test_conll_tabs_keep_odd_tokens_and_columns_can_be_chosen(write):
    path = write("a.tsv", "1\t\u3000\tO\tx\n2\tNew York\tB-LOC\tx\n")
    corpus = read_tagged(path, token_column=1, tag_column=2)
    assert corpus.examples[0].tokens == ("\u3000", "New York")
    assert read_tagged(path, token_column=1, tag_column=-2).examples == corpus.examples
    hashes = read_tagged(write("b.bio", "#\tO\n\u3000\tO\n"), scheme="BIO")  # a token, not a comment
    assert hashes.examples[0].tokens == ("#", "\u3000")


def test_segmented(write):
    corpus = read_tagged(write("a.txt", "我  爱 北京\n\n天安门\tPython code\n"))
    assert corpus.format == "segmented"
    assert corpus.scheme == "BMES"
    assert corpus.examples[0] == Tagged(tuple("我爱北京"), tuple("SSBE"), "我爱北京", 1)
    assert corpus.examples[1].text == "天安门Python code"
    assert "".join(corpus.examples[1].tags) == "BMEBMMMMEBMME"
    assert corpus.examples[1].line == 3
    assert read_tagged(write("b.seg.gz", gzip.compress("我们 好\n".encode()))).examples[0].tags == ("B", "E", "S")


def test_json_forms(write):
    rows = [
        {"text": "我在北京", "entities": [[2, 4, "LOC"], [0, 1, "PER"]]},
        {"tokens": ["New", "York"], "tags": ["B-LOC", "I-LOC"]},
        {"tokens": ["a"], "tags": ["O"], "text": " a "},
        {"text": "彭小军在台湾", "label": {"name": {"彭小军": [[0, 2]]}, "address": {"台湾": [[4, 5]]}}},
    ]
    corpus = read_tagged(write("a.jsonl", rows))
    assert corpus.scheme == "BIO"
    assert corpus.examples[0] == Tagged(tuple("我在北京"), ("B-PER", "O", "B-LOC", "I-LOC"), "我在北京", 1)
    assert [e.text for e in corpus.examples[1:3]] == ["New York", " a "]
    assert spans(corpus.examples[3].tags) == [(0, 3, "name"), (4, 6, "address")]
    other = read_tagged(write("b.jsonl", rows[:1]), scheme="BMES")
    assert other.examples[0].tags == ("S-PER", "O", "B-LOC", "E-LOC")
    words = read_tagged(write("c.jsonl", [{"words": ["我们", "好"]}]))
    assert (words.scheme, words.examples[0]) == ("BMES", Tagged(("我", "们", "好"), ("B", "E", "S"), "我们好", 1))


def test_positions_count_code_points(write):
    corpus = read_tagged(write("a.jsonl", [{"text": "😀中\n国", "entities": [[1, 2, "X"], [3, 4, "X"]]}]))
    assert corpus.examples[0].tokens == ("😀", "中", "\n", "国")
    assert spans(corpus.examples[0].tags) == [(1, 2, "X"), (3, 4, "X")]


def test_format_is_told_from_content_where_the_name_says_nothing(write):
    assert read_tagged(write("a.txt", "北 B-LOC\n京 I-LOC\n\n我 O\n")).format == "conll"
    assert read_tagged(write("b", "我 爱 北京\n维生素 B\n")).format == "segmented"
    assert read_tagged(write("c.data", [{"tokens": ["a"], "tags": ["B"]}])).format == "jsonl"
    assert read_labelled(write("d", "text\tlabel\na\t1\n")).format == "tsv"
    assert read_labelled(write("e.txt", "label,text\n1,a\n")).format == "csv"
    assert read_labelled(write("f.txt", [{"text": "a", "label": 1}])).format == "jsonl"
    assert read_tagged(write("g.txt", "北 B-LOC\n"), format="segmented").format == "segmented"  # explicit wins


TAGGED_FAULTS = [
    (
        "a.jsonl",
        '{"text": "ab", "entities": [[0, 3, "X"]]}',
        r"a\.jsonl, line 1, entities\[0\]: \[0, 3\] does not lie in the",
    ),
    ("a.jsonl", '{"text": "ab", "entities": [[-1, 1, "X"]]}', r"needs 0 <= start < end <= 2 \(end exclusive"),
    ("a.jsonl", '{"text": "ab", "entities": [[1, 1, "X"]]}', r"\[1, 1\] does not lie"),
    ("a.jsonl", '{"text": "ab", "entities": [[0.0, 1, "X"]]}', r"start and end must be whole numbers, got 0.0 and 1"),
    ("a.jsonl", '{"text": "ab", "entities": [[true, 2, "X"]]}', r"whole numbers, got True"),
    ("a.jsonl", '{"text": "ab", "entities": [[0, 1, 7]]}', r"the type must be a text that is not empty, got 7"),
    ("a.jsonl", '{"text": "ab", "entities": [[0, 1, " "]]}', r"the type must be a text"),
    ("a.jsonl", '{"text": "ab", "entities": [[0, 1]]}', r"expected \[start, end, type\], got \[0, 1\]"),
    ("a.jsonl", '{"text": "ab", "entities": {}}', r"entities: expected a list"),
    (
        "a.jsonl",
        '{"text": "abc", "entities": [[1, 3, "Y"], [0, 2, "X"]]}',
        r"entities\[0\]: 'bc' \[1, 3, 'Y'\] overlaps 'ab'",
    ),
    ("a.jsonl", '{"text": "ab"}', r"entities: missing; the row has 'text'"),
    ("a.jsonl", '{"txt": "ab", "entities": []}', r"text: missing; the row has 'txt', 'entities'; did you mean 'txt'"),
    ("a.jsonl", '{"text": "", "entities": []}', r"text: the text is empty"),
    ("a.jsonl", '{"text": 5, "entities": []}', r"text: expected a text, got a number"),
    ("a.jsonl", '{"text": "a\\ud83d", "entities": []}', r"holds half a character"),
    ("a.jsonl", '{"tokens": ["a", "b"], "tags": ["O"]}', r"tags: 1 tags for 2 tokens; every token needs one"),
    ("a.jsonl", '{"tokens": ["a", ""], "tags": ["O", "O"]}', r"tokens\[1\]: expected a text that is not empty, got ''"),
    ("a.jsonl", '{"tokens": [], "tags": []}', r"tokens: expected a list of texts with at least one"),
    ("a.jsonl", '{"tokens": ["a"], "tags": ["PER"]}', r"tags\[0\]: 'PER' is not a tag"),
    ("a.jsonl", '{"tokens": ["a"]}', r"tags: missing"),
    (
        "a.jsonl",
        '{"text": "台湾岛", "label": {"x": {"台湾": [[0, 2]]}}}',
        r"label\.x\.台湾: the text has '台湾岛' at \[0, 2\]",
    ),
    ("a.jsonl", '{"text": "ab", "label": {"x": {"a": [0, 0]}}}', r"expected \{type: \{name: \[\[first, last\]"),
    ("a.conll", "a O\nb\nc O\n", r"a\.conll, line 2: 1 column \(parted by blanks\), a token and a tag are needed"),
    ("a.conll", "a x O\nb O\n", r"line 2: 2 columns \(parted by blanks\) where line 1 has 3"),
    ("a.conll", "a\tO\nb O\n", r"line 2: 1 column \(parted by tabs\)"),
    ("a.conll", "a\tO\n\tO\n", r"line 2, column 1: the token is empty"),
    ("a.conll", "a B_PER\n", r"line 1, column 2: 'B_PER' is not a tag; write B-PER"),
    ("a.conll", "a O _\nb O _\n", r"column 3: '_' is not a tag.*tag_column= chooses another of the 3 columns"),
    (
        "a.conll",
        "a O\nb I-PER\n\nc O\nd B-PER\n",
        r"line 2, token 2: 'I-PER' cannot follow 'O' in BIO; mend the tags, or on_bad_rows='repair'",
    ),
    ("a.conll", "a I-PER\nb B-LOC\n", r"line 1, token 1: 'I-PER' cannot open a sentence in BIO"),
    ("a.conll", "a B-X\nb M-X\n\nc S-X\n", r"line 2, token 2: the sentence ends inside a span: 'M-X' is not closed"),
    (
        "a.conll",
        "a B-X\nb I-X\n\nc M-X\n",
        r"prefixes B, I, M belong to no one scheme.*B at line 1, I at line 2, M at line 4",
    ),
    ("a.conll", "a O\nb O\n", r"nothing but 'O'; name it"),
    ("a.txt", "这是一行没有切分的普通文字\n", r"no line holds a blank between words"),
    ("a.csv", "token,tag\na,O\n", r"tagged data is not read from CSV; allowed formats are conll, segmented, jsonl"),
    ("a.conll", "", r"a\.conll: no example to use: the set is empty"),
    ("a.conll", "\n \n\n", r"the set is empty"),
    ("a.txt", "", r"the set is empty"),
    ("a.jsonl", "\n\n", r"the set is empty"),
    ("a.conll", "# only a comment\n", r"the set is empty"),
]


@pytest.mark.parametrize(("name", "data", "message"), TAGGED_FAULTS)
def test_faults_of_tagged_files(write, name, data, message):
    with pytest.raises(InputError, match=message) as caught:
        read_tagged(write(name, data))
    assert "\n" not in str(caught.value)


LABELLED_FAULTS = [
    (
        "a.jsonl",
        '{"text": "a", "label": null}',
        r"a\.jsonl, line 1, label: expected a text or a whole number, got None",
    ),
    ("a.jsonl", '{"text": "a", "label": 0.5}', r"got 0.5"),
    ("a.jsonl", '{"text": "a", "label": true}', r"got True"),
    ("a.jsonl", '{"text": "a", "label": " "}', r"label: the class is empty"),
    ("a.jsonl", '{"text": "  ", "label": "x"}', r"text: the text is empty"),
    ("a.jsonl", '{"sentence": "a", "label": "x"}', r"did you mean 'sentence'\? pass text_field='sentence'"),
    ("a.jsonl", '{"text": "a"}', r"label: missing; the row has 'text'"),
    ("a.jsonl", '{"text": "a", "label": "x"}\n{"text": "b"', r"line 2, column 13: not JSON"),
    ("a.csv", "text,label\n,x\n", r"a\.csv, line 2, text: the text is empty"),
    ("a.csv", "text,label\na,\n", r"line 2, label: the class is empty"),
    ("a.csv", "text,label\n", r"the set is empty"),
    ("a.tsv", "text,label\na,x\n", r"columns must be parted by '\\t', this line has ','"),
    ("a.txt", "just a text\n", r"cannot tell the format: .*'just a text'.*pass format= one of jsonl, tsv, csv"),
]


@pytest.mark.parametrize(("name", "data", "message"), LABELLED_FAULTS)
def test_faults_of_labelled_files(write, name, data, message):
    with pytest.raises(InputError, match=message) as caught:
        read_labelled(write(name, data))
    assert "\n" not in str(caught.value)


def test_labelled(write):
    corpus = read_labelled(write("a.jsonl", [{"text": "好", "label": 1, "id": 7}, {"text": "坏 ", "label": " neg "}]))
    assert corpus.examples == [Labelled("好", "1", 1), Labelled("坏 ", "neg", 2)]
    assert (corpus.format, corpus.scheme, corpus.labels) == ("jsonl", "", ["1", "neg"])
    path = write("b.csv", 'cat,title,body\nx,T,"B\nC"\ny,,D\n')
    corpus = read_labelled(path, text_field=["title", "body"], label_field="cat")
    assert corpus.examples == [Labelled("T\nB\nC", "x", 2), Labelled("D", "y", 4)]


def test_skip_counts_and_lists(write):
    rows = [{"text": "a", "label": "x"}, {"text": "", "label": "x"}, {"label": "x"}, {"text": "b", "label": "y"}]
    path = write("a.jsonl", rows)
    corpus = read_labelled(path, on_bad_rows="skip")
    assert [e.line for e in corpus.examples] == [1, 4]
    assert [(row.path, row.line, row.field) for row in corpus.skipped] == [
        (str(path), 2, "text"),
        (str(path), 3, "text"),
    ]
    with pytest.raises(InputError, match=r"line 2, text: .*\(1 more bad row\); on_bad_rows='skip'"):
        read_labelled(path)


def test_a_bad_line_of_conll_costs_its_sentence_only(write):
    path = write("a.conll", b"a O\nb B-X\n\nc O\nd\ne\n\nf \xff\ng O\n\nh B-X\n")
    corpus = read_tagged(path, on_bad_rows="skip")
    assert [e.tokens for e in corpus.examples] == [("a", "b"), ("h",)]
    assert [row.line for row in corpus.skipped] == [5, 8]


def test_repair_rewrites_as_the_scorer_reads(write):
    path = write("a.conll", "a O\nb I-X\nc I-X\nd I-Y\n\ne B-X\n")
    corpus = read_tagged(path, on_bad_rows="repair")
    assert corpus.examples[0].tags == ("O", "B-X", "I-X", "B-Y")
    assert [str(r).partition(", ")[2] for r in corpus.repaired] == [
        "line 2, token 2: 'I-X' cannot follow 'O' in BIO; rewritten"
    ]
    assert corpus.notes["repaired"] == 1
    assert [e.line for e in read_tagged(path, on_bad_rows="skip").examples] == [6]
    with pytest.raises(InputError, match="1 column"):  # repair mends tag sequences, nothing else
        read_tagged(write("b.conll", "a B-X\nb\n"), on_bad_rows="repair")


def test_iob1_is_told_by_its_sequences(write):
    path = write("a.conll", "a I-X\nb B-X\n\nc O\nd I-Y\n")
    corpus = read_tagged(path)
    assert corpus.scheme == "IOB1"
    assert spans(corpus.examples[0].tags, "IOB1") == [(0, 1, "X"), (1, 2, "X")]


def test_options(write):
    path = write("a.conll", "a B-X\nb E-X\n")
    assert read_tagged(path, scheme="BIOES").scheme == "BIOES"
    with pytest.raises(InputError, match=r"line 2, tag: 'E-X' is not a tag of BIO; scheme= names another one"):
        read_tagged(path, scheme="BIO")
    with pytest.raises(InputError, match=r"scheme must be one of auto, BIO, .*got 'bio'"):
        read_tagged(path, scheme="bio")
    with pytest.raises(InputError, match=r"format must be one of auto, conll, segmented, jsonl, got 'xml'"):
        read_tagged(path, format="xml")
    with pytest.raises(InputError, match=r"so tag_column=5 does not exist"):
        read_tagged(path, tag_column=5)
    with pytest.raises(InputError, match=r"segmented lines are read as BMES, scheme='BIO' cannot be kept"):
        read_tagged(write("b.seg", "a b\n"), scheme="BIO")


def test_joining_tokens():
    assert join_tokens(["I", "love", "北京", "Beijing", "2008", "。", "OK"]) == "I love北京Beijing 2008。OK"
    assert join_tokens([]) == ""


@pytest.mark.data
@pytest.mark.parametrize(
    ("name", "mode", "examples", "scheme", "skipped", "repaired"),
    [
        ("weibo-ner/train", "repair", 1350, "BIO", 0, 8),
        ("weibo-ner/train", "skip", 1342, "BIO", 8, 0),
        ("wnut17/test", "fail", 1287, "BIO", 0, 0),
        ("cluener/dev", "fail", 1343, "BIO", 0, 0),
        ("ud-zh-segmentation/test", "fail", 500, "BMES", 0, 0),
    ],
)
def test_real_corpora(shared, name, mode, examples, scheme, skipped, repaired):
    corpus = read_tagged(shared / "data" / f"{name}.jsonl.gz", on_bad_rows=mode)
    assert (len(corpus), corpus.scheme) == (examples, scheme)
    assert (len(corpus.skipped), len(corpus.repaired)) == (skipped, repaired)


def test_overlapping_entities_are_taken_where_asked_for(tmp_path):
    path = tmp_path / "x.jsonl"
    path.write_text(
        '{"text": "在北京大学", "entities": [[1, 3, "LOC"], [1, 5, "ORG"]]}\n'
        '{"text": "北京", "entities": [[0, 2, "LOC"], [0, 2, "LOC"]]}\n'
        '{"text": "北京", "entities": [[0, 2, "LOC"]]}\n',
        encoding="utf-8",
    )
    nested, twice, plain = read_tagged(path, nested=True).examples
    assert nested.nested == ((1, 3, "LOC"), (1, 5, "ORG"))
    assert nested.tags == ("O", "B-ORG", "I-ORG", "I-ORG", "I-ORG")  # the longer one
    assert nested.overlap == ((1, 3, "LOC"), (1, 5, "ORG"))
    assert (twice.nested, twice.tags, plain.nested) == ((), ("B-LOC", "I-LOC"), ())
    with pytest.raises(InputError, match=r"line 1, entities\[1\]: '北京大学' \[1, 5, 'ORG'\] overlaps '北京'"):
        read_tagged(path)
