"""CoNLL-U read: words, texts, ranges, empty nodes, bad sentences named by file and line, real treebanks."""

import gzip

import pytest

from danlu.data import read_conllu
from danlu.data.errors import InputError
from danlu.math import is_projective

ROWS = ["1\t他\t他\tPRON\tPRP\t_\t2\tnsubj\t_\tSpaceAfter=No", "2\t走\t走\tVERB\tVV\t_\t0\troot\t_\t_"]


@pytest.fixture
def read(tmp_path):
    def reads(*lines, **options):
        path = tmp_path / "some.conllu"
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")
        return read_conllu(path, **options)

    return reads


def row(number, form="x", head="0", misc="_", upos="NOUN", deprel="dep"):
    return f"{number}\t{form}\t_\t{upos}\t_\t_\t{head}\t{deprel}\t_\t{misc}"


def test_a_sentence(read):
    corpus = read("# newdoc", "# text = 他走", *ROWS, "", *ROWS)
    assert (len(corpus), corpus.format, corpus.skipped) == (2, "conllu", [])
    first, second = corpus.examples
    assert (first.words, first.heads, first.upos) == (("他", "走"), (2, 0), ("PRON", "VERB"))
    assert (first.relations, first.text, first.line, first.root) == (("nsubj", "root"), "他走", 1, 2)
    assert (second.text, second.line) == ("他走", 6)  # joined: SpaceAfter=No


def test_texts_are_joined_with_their_blanks(read):
    assert read(row(1, "Hello"), row(2, "world", 1, "SpaceAfter=No"), row(3, "!", 1)).examples[0].text == "Hello world!"
    assert read("#text=  a b ", row(1)).examples[0].text == "a b"


def test_ranges_and_empty_nodes_are_no_words(read):
    lines = [
        "1-2\tim\t" + "\t".join("_" * 8),
        row(1, "in", 3),
        row(2, "dem", 3),
        row(3, "Haus"),
        row("3.1", "ging", "_"),
    ]
    example = read(*lines).examples[0]
    assert (example.words, example.heads, example.text) == (("in", "dem", "Haus"), (3, 3, 0), "im Haus")


def test_line_ends_mark_and_archives(tmp_path):
    path = tmp_path / "some.conllu.gz"
    path.write_bytes(gzip.compress("\ufeff".encode() + "\r\n".join([*ROWS, "", "", *ROWS]).encode()))
    assert [e.line for e in read_conllu(path).examples] == [1, 5]


def test_comments_alone_are_no_sentence(read):
    assert len(read("# nothing", "", *ROWS, "", "# nothing")) == 1


def test_punctuation_by_tag_or_relation(read):
    example = read(row(1), row(2, ",", 1, upos="PUNCT"), row(3, ".", 1, upos="_", deprel="punct:x")).examples[0]
    assert example.punctuation == (False, True, True)


def test_forests_are_kept(read):
    assert read(row(1), row(2)).examples[0].heads == (0, 0)


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ([row(1), row(3)], r"line 2, column 1: expected the number 2, got '3'"),
        ([row(1, head="2")], r"line 1, column 7: the head must be a number from 0 to 1, got '2'"),
        ([row(1, head="-1")], r"column 7: the head must be a number from 0 to 1, got '-1'"),
        ([row(1, head="9" * 5000)], r"column 7: the head must be a number"),
        ([row(1, head="_")], r"line 1, column 7: no head \('_'\); this file holds no trees"),
        ([row(1, head=2), row(2, head=1)], r"line 1, column 7: the heads turn in a circle"),
        ([row(1, head=1)], r"the heads turn in a circle"),
        ([row(1, form=" ")], r"line 1, column 2: the form is empty"),
        (["1\tx\t_"], r"line 1: 3 columns, CoNLL-U has 10"),
        (["1 x _ NOUN _ _ 0 root _ _"], r"line 1: 1 column, CoNLL-U has 10; columns are parted by tabs"),
        ([row("1-2")], r"line 1: no word in this sentence"),
    ],
)
def test_bad_sentences_are_named_or_skipped(read, bad, message):
    with pytest.raises(InputError, match=rf"some\.conllu, {message if message.startswith('line') else '.*' + message}"):
        read(*bad, "", *ROWS)
    corpus = read(*bad, "", *ROWS, on_bad_rows="skip")
    assert len(corpus) == 1
    assert len(corpus.skipped) == 1


def test_bytes_that_are_not_text(tmp_path):
    path = tmp_path / "bytes.conllu"
    path.write_bytes(
        ROWS[0].replace("他\t他", "\xff\t_").encode("latin-1", "replace") + b"\n\n" + "\n".join(ROWS).encode()
    )
    with pytest.raises(InputError, match="invalid UTF-8"):
        read_conllu(path)
    corpus = read_conllu(path, on_bad_rows="skip")
    assert [len(corpus), corpus.skipped[0].line] == [1, 1]


def test_options_and_nothing_to_read(read):
    with pytest.raises(InputError, match="format must be one of auto, conllu, got 'jsonl'"):
        read(*ROWS, format="jsonl")
    with pytest.raises(InputError, match="no example to use: the set is empty"):
        read("# nothing")


@pytest.mark.data
@pytest.mark.parametrize(
    ("name", "sentences"),
    [("ud-zh-gsdsimp/test", 500), ("ud-zh-pud/test", 1000), ("ud-en-pud/test", 1000), ("ud-en-ewt/dev", 2001)],
)
def test_real_treebanks(shared, name, sentences):
    corpus = read_conllu(shared / "data" / f"{name}.conllu.gz")
    assert (len(corpus), corpus.skipped) == (sentences, [])
    for example in corpus.examples:
        assert example.heads.count(0) == 1
        assert "".join(example.text.split()) == "".join("".join(example.words).split()) or "ewt" in name or "en" in name
    crossing = sum(not is_projective(list(e.heads)) for e in corpus.examples)
    assert 0 <= crossing < 0.2 * sentences


@pytest.mark.data
def test_chains_on_pud_as_the_dossier_measured_them(shared):
    from danlu.math import attachment_scores, chain_heads

    gold = [list(e.heads) for e in read_conllu(shared / "data" / "ud-en-pud" / "test.conllu.gz").examples]
    measured = {"next": (0.350, 0.398), "previous": (0.107, 0.370), "to_root": (0.203, 0.411), "star": (0.303, 0.303)}
    for kind, (uas, uuas) in measured.items():
        found = []
        for heads in gold:
            chain = chain_heads(len(heads), kind, heads.index(0) + 1)
            end = {"next": len(heads), "previous": 1}.get(kind, 0)
            if end and chain[end - 1]:
                chain[end - 1] = -1  # there the word at the end hung on nothing, not on the root
            found.append(chain)
        got = attachment_scores(found, gold, root=True)
        assert (got.uas, got.uuas) == pytest.approx((uas, uuas), abs=0.012), kind  # that file was another release
