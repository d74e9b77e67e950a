"""Token corpus: written and read back, windows against the stream by hand, epochs, damage, messages."""

import numpy as np
import pytest

from danlu.data.corpus import TokenCorpus, Windows, write_corpus
from danlu.data.errors import InputError

SEP = 3
DOCUMENTS = [[10, 11, 12], [20], [30, 31, 32, 33, 34, 35, 36], [40, 41]]


@pytest.fixture
def corpus(tmp_path):
    write_corpus(tmp_path / "c", ((row, [i % 2 == 0 for i in range(len(row))]) for row in DOCUMENTS), {"x": "丹"})
    return TokenCorpus(tmp_path / "c")


def test_comes_back_as_it_was_written(corpus):
    assert (len(corpus), corpus.tokens) == (4, 13)
    assert [corpus.document(i)[0].tolist() for i in range(4)] == DOCUMENTS
    assert corpus.document(2)[1].tolist() == [True, False, True, False, True, False, True]
    assert corpus.header["words"] == 2 + 1 + 4 + 1 and corpus.header["about"] == {"x": "丹"}


def test_streams_in_bounded_memory(tmp_path, monkeypatch):
    monkeypatch.setattr("danlu.data.corpus._CHUNK", 5)  # several writes
    taken = []

    def stream():
        for row in DOCUMENTS * 10:
            taken.append(row)
            yield row, [True] * len(row)

    write_corpus(tmp_path / "c", stream())
    assert len(taken) == 40
    corpus = TokenCorpus(tmp_path / "c")
    assert [corpus.document(i)[0].tolist() for i in range(40)] == DOCUMENTS * 10


def by_hand(windows):  # oracle: the whole stream of the epoch as a Python list
    return [t for d in windows._documents for t in [*DOCUMENTS[d], SEP]]


@pytest.mark.parametrize("length", [1, 3, 5])
def test_windows_are_the_stream_cut(corpus, length):
    windows = Windows(corpus, length, SEP, seed=0, epoch=0)
    ids, begins = windows.take(np.arange(len(windows)))
    stream = by_hand(windows)
    cut = [stream[windows._shift + k * length :][:length] for k in windows._order]
    assert ids.tolist() == cut
    flag = {t: i % 2 == 0 for row in DOCUMENTS for i, t in enumerate(row)} | {SEP: True}
    assert begins.tolist() == [[flag[t] for t in row] for row in cut]


def test_an_epoch_covers_almost_everything_once(corpus):
    windows = Windows(corpus, 2, SEP, seed=1, epoch=0)
    seen = sorted(windows.take(np.arange(len(windows)))[0].flatten().tolist())
    whole = sorted(t for row in DOCUMENTS for t in [*row, SEP])
    missing = list(whole)
    for token in seen:
        missing.remove(token)  # raises if a token came twice
    assert len(missing) < 2 * 2


def test_windows_come_in_a_new_order(tmp_path):
    write_corpus(tmp_path / "c", [(np.arange(100), np.ones(100, bool))])
    orders = [Windows(TokenCorpus(tmp_path / "c"), 5, SEP, 0, e).take(range(15))[0][:, 0] // 5 for e in range(2)]
    assert all((np.diff(order) < 0).any() for order in orders) and (orders[0] != orders[1]).any()


def test_epochs_differ_and_repeat_themselves(corpus):
    take = lambda seed, epoch: Windows(corpus, 3, SEP, seed, epoch).take([0, 1, 2])[0].tolist()  # noqa: E731
    assert take(0, 0) == take(0, 0)
    assert len({str(take(0, epoch)) for epoch in range(8)}) > 4
    assert len({Windows(corpus, 3, SEP, 0, epoch)._shift for epoch in range(20)}) == 3
    assert take(0, 1) != take(1, 1) or take(0, 2) != take(1, 2)


def test_a_window_as_long_as_the_text(corpus):
    windows = Windows(corpus, 17, SEP, 0, 0)
    assert len(windows) == 1 and windows.take([0])[0][0].tolist() == by_hand(windows)
    with pytest.raises(InputError, match="13 tokens in 4 documents, a window takes 18"):
        Windows(corpus, 18, SEP, 0, 0)
    with pytest.raises(ValueError, match="at least 1 token, got 0"):
        Windows(corpus, 0, SEP, 0, 0)


def test_nothing_is_left_of_a_failure_and_the_old_corpus_stays(tmp_path, corpus):
    def breaks():
        yield [1], [True]
        raise RuntimeError("gone")

    with pytest.raises(RuntimeError, match="gone"):
        write_corpus(tmp_path / "c", breaks())
    assert TokenCorpus(tmp_path / "c").tokens == 13
    assert [path.name for path in tmp_path.iterdir()] == ["c"]


def test_messages(tmp_path, corpus):
    with pytest.raises(ValueError, match=r"document 1: ids have shape \(2,\), begins \(1,\)"):
        write_corpus(tmp_path / "d", [([1], [True]), ([1, 2], [True])])
    with pytest.raises(ValueError, match="65536, a corpus holds 0 to 65535"):
        write_corpus(tmp_path / "d", [([1, 65_536], [True, True])])
    with pytest.raises(InputError, match="holds no token"):
        write_corpus(tmp_path / "d", [([], [])])
    with pytest.raises(InputError, match="not a corpus that danlu wrote"):
        TokenCorpus(tmp_path / "d")
    path = tmp_path / "c" / "ids.bin"
    path.write_bytes(path.read_bytes()[:-2])
    with pytest.raises(InputError, match="24 bytes, 26 belong there"):
        TokenCorpus(tmp_path / "c")
    header = tmp_path / "c" / "corpus.json"
    header.write_text(header.read_text().replace('"format_version": 1', '"format_version": 9'))
    with pytest.raises(InputError, match="corpus format 9"):
        TokenCorpus(tmp_path / "c")
