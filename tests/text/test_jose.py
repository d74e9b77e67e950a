"""JoSE: a pass by hand, autograd, single triples, both backends, draws, topics, inference, resume, files, messages."""

import dataclasses
import importlib.util
import math
import multiprocessing

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file

from danlu.data import InputError
from danlu.text import JoSEConfig, JoSETrainer, _jose_batches, _jose_loop, build_corpus, load_jose, train_jose
from danlu.text.word_corpus import keep_probability, walker_table

HAS_NUMBA = importlib.util.find_spec("numba") is not None
KERNEL = pytest.param("kernel", marks=pytest.mark.skipif(not HAS_NUMBA, reason="needs numba"))
LOOP = pytest.mark.parametrize("engine", ["plain", KERNEL])
BACKEND = pytest.mark.parametrize("backend", [KERNEL, "torch"])
RULES = {"plain": 0, "paper": 1, "jose_c": 2}
FORMS = [("jose_c", False), ("paper", False), ("plain", False), ("paper", True), ("plain", True)]


def engine_of(name):
    if name == "kernel":
        from danlu.text._jose_kernel import compiled

        return compiled(np.float64)

    def quietly(*args):  # whole numbers of 64 bits wrap round, and numpy's scalars say so
        with np.errstate(over="ignore"):
            _jose_loop.run_documents(*args)

    return quietly


def rows(*shape, seed=0):
    return F.normalize(torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)), dim=-1)


def call(engine, documents, words, anchors, accept, alias, *, form=("jose_c", False), window=2, negative=2, margin=0.15,
         rate=0.3, keep=None, seeds=None, frozen=False, first=None):  # fmt: skip
    """One pass of the loop over all documents, with lists of word numbers; returns statistics and hits."""
    offsets = np.cumsum([0, *map(len, documents)]).astype(np.int64)
    ids = np.array([w for d in documents for w in d], np.int32)
    seeds = np.arange(1, 1 + len(documents)).astype(np.uint64) * np.uint64(10**15) if seeds is None else seeds
    keep = np.ones(len(words)) if keep is None else keep
    stats, hits = np.zeros(6), np.zeros(len(documents), np.int64)
    engine_of(engine)(
        np.arange(len(documents)), seeds, np.full(len(documents), rate), offsets, ids, keep, accept, alias,
        words.numpy(), anchors.numpy(), hits, stats, np.array([margin]), max(map(len, documents)),
        len(words) if first is None else first, window, negative, RULES[form[0]], form[1], frozen,
    )  # fmt: skip
    return stats, hits


# --- one pass by hand: Python floats, the gradient by autograd, the draws by Python's whole numbers ---------------


def dot(x, y):
    return sum(p * q for p, q in zip(x, y, strict=True))


def unit(x):
    size = math.sqrt(dot(x, x))
    return [p / size for p in x]


def moved(x, rate, direction):
    return unit([p + rate * q for p, q in zip(x, direction, strict=True)])


def triple_by_hand(u, n, anchors, margin, rate, rule):
    """New rows u, u' and anchors after one triple; None where the hinge is satisfied."""
    if rule == "jose_c":  # section 2.3 of our notes on the program
        (v,) = anchors
        f, h = dot(u, v), dot(n, v)
        if f - h >= margin:
            return None
        new_u = moved(u, rate * (1 - f), [b - f * a for a, b in zip(u, v, strict=True)])
        new_n = moved(n, rate * 2 * h, [h * a - b for a, b in zip(n, v, strict=True)])
        pull = [(a - f * c) - (b - h * c) for a, b, c in zip(u, n, v, strict=True)]
        return new_u, new_n, [moved(v, rate * (1 - (f - h)), pull)]
    leaves = [torch.tensor(x, dtype=torch.float64, requires_grad=True) for x in (u, n, *anchors)]
    z = sum(leaves[2:])
    loss = (margin - leaves[0] @ z + leaves[1] @ z).clamp_min(0)
    if loss == 0:
        return None
    result = []
    for x, grad in zip(leaves, torch.autograd.grad(loss, leaves), strict=True):
        x = x.detach()
        k = 1 - F.cosine_similarity(x, -grad, dim=0) if rule == "paper" else 1.0
        result.append(moved(x.tolist(), rate, (-k * (grad - (x @ grad) * x)).tolist()))
    return result[0], result[1], result[2:]


class Draws:
    """The linear congruence of the module's docstring with Python's whole numbers."""

    def __init__(self, seed):
        self.state = int(seed)

    def unit(self):
        self.state = (self.state * 6364136223846793005 + 1442695040888963407) % 2**64
        return (self.state // 2**32) / 2**32


def pass_by_hand(documents, words, anchors, accept, alias, form, window, negative, margin, rate, keep, seeds):
    rule, joint = form
    words, anchors = words.tolist(), anchors.tolist()
    for d, document in enumerate(documents):
        draws = Draws(seeds[d])
        kept = [w for w in document if draws.unit() < keep[w]]
        own = len(words) + d
        for i, word in enumerate(kept):
            radius = 1 + int(draws.unit() * window)
            near = [kept[j] for j in range(i - radius, i + radius + 1) if 0 <= j < len(kept) and j != i]
            turns = [(u, [word, own] if joint else [word]) for u in near]
            for u, places in turns if joint else [*turns, (word, [own])]:
                for _ in range(negative):
                    n = int(draws.unit() * len(words))
                    n = n if draws.unit() < accept[n] else int(alias[n])
                    if n in (u, word):
                        continue
                    made = triple_by_hand(words[u], words[n], [anchors[p] for p in places], margin, rate, rule)
                    if made is not None:
                        words[u], words[n] = made[0], made[1]
                        for p, row in zip(places, made[2], strict=True):
                            anchors[p] = row
    return torch.tensor(words, dtype=torch.float64), torch.tensor(anchors, dtype=torch.float64)


@LOOP
@pytest.mark.parametrize("form", FORMS)
def test_a_pass_equals_the_one_by_hand(engine, form):
    documents = [[0, 1, 2, 0, 3, 4], [4, 4, 1], [2], []]
    words, anchors = rows(5, 4), rows(9, 4, seed=1)
    accept, alias = walker_table(np.array([5.0, 3, 2, 2, 1]))
    keep = np.array([0.5, 1, 0.9, 1, 0.7])
    seeds = np.array([3, 2**63 + 5, 2**40, 1], np.uint64)
    expected = pass_by_hand(documents, words, anchors, accept, alias, form, 3, 2, 0.4, 0.3, keep, seeds)
    before = words.clone(), anchors.clone()
    call(engine, documents, words, anchors, accept, alias, form=form, window=3, margin=0.4, keep=keep, seeds=seeds)
    torch.testing.assert_close((words, anchors), expected, atol=1e-12, rtol=0)
    assert (words - before[0]).abs().amax(1).gt(0.01).sum() >= 3  # and something happened
    assert torch.equal(anchors[8], before[1][8])  # the empty document


@pytest.mark.skipif(not HAS_NUMBA, reason="needs numba")
@pytest.mark.parametrize("form", FORMS)
def test_one_worker_equals_the_plain_loop(form):
    documents = [[str(w) for w in np.random.default_rng(i).integers(0, 12, 15)] for i in range(6)]
    config = JoSEConfig(dim=6, window=3, min_count=1, epochs=2, step=form[0], loss="joint" if form[1] else "separate")
    corpus = build_corpus(documents, 1)
    compiled, plain = JoSETrainer(corpus, config, backend="kernel"), JoSETrainer(corpus, config, backend="kernel")
    for _ in compiled:
        pass
    for epoch in range(2):
        order = np.random.default_rng([0, epoch]).permutation(6)
        sizes = np.diff(corpus.offsets)[order]
        rates = config.lr * (1 - (epoch * len(corpus.ids) + np.cumsum(sizes) - sizes) / (2 * len(corpus.ids)))
        from danlu.text.jose_trainer import hashed

        with np.errstate(over="ignore"):
            _jose_loop.run_documents(
                order, hashed(0, epoch, order), rates.astype(np.float32), corpus.offsets, corpus.ids,
                keep_probability(corpus.counts, 1e-3), *walker_table(corpus.counts**0.75), plain.words.numpy(),
                plain.anchors.numpy(), plain.hits.numpy(), np.zeros(6), np.array([0.15], np.float32), 15, 12, 3, 2,
                RULES[form[0]], form[1], False,
            )  # fmt: skip
    assert compiled.hits.tolist() == plain.hits.tolist()
    torch.testing.assert_close(compiled.words, plain.words, atol=2e-5, rtol=0)
    torch.testing.assert_close(compiled.anchors, plain.anchors, atol=2e-5, rtol=0)


# --- single triples ----------------------------------------------------------------------------------------------


def one_triple(engine, u, n, d, rule, rate=0.1, margin=0.15):
    """The document of one word u with the only negative n: one triple with the anchor d."""
    words, anchors = torch.stack([u, n]).clone(), torch.stack([u, n, d]).clone()
    accept, alias = np.zeros(2), np.array([1, 1], np.int32)  # always the second word
    stats, _ = call(engine, [[0]], words, anchors, accept, alias, form=(rule, False), negative=1, rate=rate,
                    margin=margin)  # fmt: skip
    assert stats[3] == 1 and stats[0] == 0
    return words[0], words[1], anchors[2], stats


def three_rows(f, h, gap):
    """u, u' and d in 7 dimensions with u.d = f, u'.d = h and |u - u'| = gap."""
    gram = torch.tensor([[1, 1 - gap**2 / 2, f], [1 - gap**2 / 2, 1, h], [f, h, 1]], dtype=torch.float64)
    frame = torch.linalg.qr(torch.randn(7, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(9)))[0]
    return torch.linalg.cholesky(gram) @ frame.T


@LOOP
@pytest.mark.parametrize(
    ("rule", "factors"), [("paper", (1.735, 0.415, 1.123)), ("jose_c", (1.735, -1.171, 1.150)), ("plain", (1, 1, 1))]
)
def test_the_factors_of_the_dossiers_example(engine, rule, factors):
    u, n, d = three_rows(-0.735, -0.5855, 1.2155)
    f, h, rate = -0.735, -0.5855, 0.1
    new_u, new_n, new_d, _ = one_triple(engine, u, n, d, rule)
    for old, new, step, k in ((u, new_u, d - f * u, factors[0]), (n, new_n, h * n - d, factors[1]),
                              (d, new_d, (u - f * d) - (n - h * d), factors[2])):  # fmt: skip
        size = step.norm()
        turned = torch.atan2(new @ (step / size), new @ old)  # tan of it is rate k |step|
        assert (turned.tan() / (rate * size)).item() == pytest.approx(k, abs=2e-3)


@LOOP
def test_a_far_negative_comes_nearer_under_the_programs_rule_only(engine):
    u, n, d = three_rows(-0.9, -0.8, 0.6)
    for rule, nearer in (("jose_c", True), ("paper", False), ("plain", False)):
        new = one_triple(engine, u, n, d, rule)[1]
        assert bool(new @ d > -0.8) == nearer


@LOOP
@pytest.mark.parametrize("rule", list(RULES))
def test_a_satisfied_hinge_changes_no_bit(engine, rule):
    u, n, d = three_rows(0.5, 0.34, 1.0)
    new_u, new_n, new_d, stats = one_triple(engine, u, n, d, rule)
    assert torch.equal(new_u, u) and torch.equal(new_n, n) and torch.equal(new_d, d)
    assert stats.tolist() == [0, 0, 0, 1, 0, 0]
    stats = one_triple(engine, u, n, d, rule, margin=0.2)[3]
    assert stats[3:].tolist() == [1, 1, pytest.approx(0.04)]


@LOOP
@pytest.mark.parametrize("rule", list(RULES))
def test_equal_rows_leave_no_nan(engine, rule):
    u = rows(7)
    for new in one_triple(engine, u, u, u, rule)[:3]:
        assert new.norm().item() == pytest.approx(1, abs=1e-12)
    for new in one_triple(engine, u, -u, -u, rule)[:3]:
        assert new.norm().item() == pytest.approx(1, abs=1e-12)


@LOOP
def test_nan_in_one_row_does_not_spread(engine):
    words, anchors = rows(3, 4), rows(4, 4, seed=1)
    words[2] = torch.nan
    call(engine, [[0, 1, 0, 1]], words, anchors, np.zeros(3), np.array([2, 2, 2], np.int32))
    assert torch.isfinite(words[:2]).all() and torch.isfinite(anchors).all()


# --- draws -------------------------------------------------------------------------------------------------------


@LOOP
def test_windows_shrink_evenly(engine):
    """Of two words at a distance of t <= window, each meets the other with probability (window - t + 1) / window."""
    count, window = 400, 4
    documents = [[0, 1, 2, 3, 4]] * count
    words, anchors = rows(6, 2), rows(6 + count, 2, seed=1)
    stats, hits = call(engine, documents, words, anchors, np.zeros(6), np.full(6, 5, np.int32), window=window,
                       negative=1, margin=-3.0)  # fmt: skip
    chance = [max(0, window - abs(i - j) + 1) / window for i in range(5) for j in range(5) if i != j]
    spread = math.sqrt(count * 5 * (2.5 * window) ** 2)  # generous: a position's number of neighbours is below 2 window
    assert abs(stats[0] - count * sum(chance)) < 4 * spread / 5
    assert stats[1] == stats[4] == 0
    assert stats[3] == 5 * count
    assert hits.tolist() == [5] * count


def test_windows_of_the_chunks_shrink_evenly():
    count, window = 400, 4
    offsets, ids = 5 * np.arange(count + 1), np.tile(np.arange(5, dtype=np.int32), count)
    order, hits, stats = np.arange(count)[::-1].copy(), np.zeros(count, np.int64), np.zeros(6)
    _jose_batches.run_batches(
        order, np.ones(count), offsets, ids, np.ones(6), np.zeros(6), np.full(6, 5, np.int32), rows(6, 2),
        rows(6 + count, 2), hits, stats, -3.0, 6, window, 1, 0, False, False, torch.Generator().manual_seed(0),
    )  # fmt: skip
    chance = [max(0, window - abs(i - j) + 1) / window for i in range(5) for j in range(5) if i != j]
    assert abs(stats[0] - count * sum(chance)) < 4 * math.sqrt(count * 5 * (2.5 * window) ** 2) / 5
    assert stats[[1, 3, 4]].tolist() == [0, 5 * count, 0]
    assert hits.tolist() == [5] * count


def test_chunks_subsample_and_draw_negatives_by_their_probabilities():
    count = 20_000
    offsets, ids = np.arange(count + 1), np.zeros(count, np.int32)
    hits, stats = np.zeros(count, np.int64), np.zeros(6)
    _jose_batches.run_batches(
        np.arange(count), np.ones(count), offsets, ids, np.array([0.3, 1, 1]), *walker_table(np.array([5.0, 3, 2])),
        rows(3, 2), rows(3 + count, 2), hits, stats, -3.0, 3, 2, 1, 0, False, False, torch.Generator().manual_seed(0),
    )  # fmt: skip
    assert abs(hits.sum() / count - 0.3) < 4 * math.sqrt(0.21 / count)
    assert abs(stats[3] / hits.sum() - 0.5) < 4 * math.sqrt(0.25 / hits.sum())  # those that are not the word itself


@pytest.mark.skipif(not HAS_NUMBA, reason="needs numba")
def test_subsampling_and_negatives_follow_their_probabilities():
    count = 3000
    words, anchors = rows(3, 2), rows(3 + count, 2, seed=1)
    keep = np.array([0.3, 1.0, 1.0])
    _, hits = call("kernel", [[0] * 10] * count, words, anchors, np.ones(3), np.arange(3, dtype=np.int32), keep=keep,
                   margin=-3.0)  # fmt: skip
    assert abs(hits.sum() / (10 * count) - 0.3) < 4 * math.sqrt(0.21 / (10 * count))
    share = np.array([0.5, 0.3, 0.2])
    stats, _ = call("kernel", [[0]] * 10 * count, words, rows(3 + 10 * count, 2), *walker_table(share), negative=1,
                    margin=-3.0)  # fmt: skip
    assert abs(stats[3] / (10 * count) - 0.5) < 4 * math.sqrt(0.25 / (10 * count))  # those that are not the word itself


# --- training ----------------------------------------------------------------------------------------------------


TOPICS = 6


def topics(documents=60, words=150, length=40, seed=0):
    """Documents of six topics with words of their own, and a few words of all."""
    draw = np.random.default_rng(seed)
    found = []
    for i in range(documents):
        own = draw.integers(0, words // TOPICS, length) * TOPICS + i % TOPICS
        found.append([f"w{w}" for w in own] + [f"common{w}" for w in draw.integers(0, 4, length // 5)])
    return found


CONFIG = JoSEConfig(dim=16, window=5, min_count=1, epochs=6, subsample=0.0, lr=0.06)


def agreement(model):
    """Share of the documents whose nearest document, and whose nearest word, has their topic."""
    docs = model.doc_vectors @ model.doc_vectors.T - 2 * torch.eye(len(model.doc_vectors))
    own = torch.arange(len(docs)) % TOPICS
    words = [model.words[i] for i in (model.doc_vectors @ model.word_vectors.T).argmax(1).tolist()]
    right = [w[0] == "w" and int(w[1:]) % TOPICS == topic for w, topic in zip(words, own.tolist(), strict=True)]
    return (docs.argmax(1) % TOPICS == own).float().mean().item(), sum(right) / len(right)


@BACKEND
@pytest.mark.parametrize("form", FORMS)
def test_topics_are_found_and_rows_keep_their_length(backend, form):
    config = JoSEConfig(**{**vars(CONFIG), "step": form[0], "loss": "joint" if form[1] else "separate"})
    model = train_jose(topics(), config, backend=backend)
    assert min(agreement(model)) > 0.95
    for table in (model.word_vectors, model.context_vectors, model.doc_vectors):
        assert table.dtype == torch.float32
        assert (table.norm(dim=1) - 1).abs().max() < 1e-6
    assert model.document_trained.all()
    if form[0] == "plain":  # the factors push rows that are near harder than they pull them: words of a topic spread
        own = [w for w in model.words if w[0] == "w"]
        near = [next(n for n, _ in model.most_similar(w, 5) if n[0] == "w") for w in own]
        assert sum(int(a[1:]) % TOPICS == int(b[1:]) % TOPICS for a, b in zip(own, near, strict=True)) / len(own) > 0.95


@pytest.mark.skipif(not HAS_NUMBA, reason="needs numba")
def test_threads_share_the_tables():
    model = train_jose(topics(200), CONFIG, workers=2, backend="kernel")
    assert min(agreement(model)) > 0.95
    assert (model.word_vectors.norm(dim=1) - 1).abs().max() < 1e-6
    assert model.document_trained.all()


@BACKEND
def test_the_same_seed_gives_the_same_bits_and_nothing_global_moves(backend):
    state = torch.get_rng_state()
    first, second = (train_jose(topics(12), CONFIG, backend=backend) for _ in range(2))
    other = train_jose(topics(12), JoSEConfig(**{**vars(CONFIG), "seed": 1}), backend=backend)
    assert torch.equal(first.word_vectors, second.word_vectors)
    assert torch.equal(first.doc_vectors, second.doc_vectors)
    assert not torch.equal(first.word_vectors, other.word_vectors)
    assert torch.equal(torch.get_rng_state(), state)


@BACKEND
def test_turned_tables_are_turned_at_the_end(backend):
    turn = torch.linalg.qr(torch.randn(16, 16, generator=torch.Generator().manual_seed(4)))[0]
    corpus = build_corpus(topics(6, length=10), 1)
    plain, turned = (JoSETrainer(corpus, JoSEConfig(**{**vars(CONFIG), "epochs": 2}), backend=backend) for _ in "ab")
    turned.words, turned.anchors = turned.words @ turn, turned.anchors @ turn
    for trainer in (plain, turned):
        for _ in trainer:
            pass
    torch.testing.assert_close(plain.words @ turn, turned.words, atol=1e-3, rtol=0)
    torch.testing.assert_close(plain.anchors @ turn, turned.anchors, atol=1e-3, rtol=0)


@pytest.mark.skipif(not HAS_NUMBA, reason="needs numba")
def test_blocks_change_nothing_and_progress_counts_words():
    corpus = build_corpus(topics(12), 1)
    whole, cut = (JoSETrainer(corpus, CONFIG, backend="kernel", block_words=n) for n in (10**9, 50))
    turns = list(whole)
    seen = list(cut)
    assert torch.equal(whole.words, cut.words) and torch.equal(whole.anchors, cut.anchors)
    assert len(turns) == 6 < len(seen)
    assert [t.words for t in turns] == [len(corpus.ids) * (i + 1) for i in range(6)]
    assert seen[-1].words == seen[-1].total == 6 * len(corpus.ids)
    assert [t.lr for t in seen] == sorted((t.lr for t in seen), reverse=True)
    assert turns[-1].loss < turns[0].loss and turns[-1].active_documents < turns[0].active_documents
    with pytest.raises(RuntimeError, match="over after 6 epochs"):
        whole.step()


@BACKEND
def test_rows_that_nothing_touches_keep_their_bits(backend):
    corpus = build_corpus([["a", "b"], [], ["a"], ["b", "a"]], 1)
    trainer = JoSETrainer(corpus, JoSEConfig(dim=8, min_count=1, subsample=0.0, epochs=3), backend=backend)
    before = trainer.anchors[2 + 1].clone()
    for _ in trainer:
        pass
    assert torch.equal(trainer.anchors[2 + 1], before)
    assert (trainer.hits > 0).tolist() == [True, False, True, True]


def test_a_chunk_moves_rows_as_single_triples_do():
    """One triple: the steps of the loop. Several hits of a row: their sum, at most one whole step."""
    u, n, d = three_rows(-0.3, 0.2, 1.1)
    for rule, code in RULES.items():
        words, anchors = torch.stack([u, n]), torch.stack([u, n, d])
        args = (torch.tensor([0]), torch.tensor([[2]]), torch.tensor([[1]]), torch.tensor([[True]]))
        _jose_batches._move(words, anchors, *args, torch.tensor([0.1]), 0.15, code, False)
        expected = triple_by_hand(u.tolist(), n.tolist(), [d.tolist()], 0.15, 0.1, rule)
        for new, row in zip((words[0], words[1], anchors[2]), (*expected[:2], expected[2][0]), strict=True):
            torch.testing.assert_close(new, torch.tensor(row, dtype=torch.float64), atol=1e-7, rtol=0)
    table, step = rows(3, 4), rows(4, seed=2)
    start = table.clone()
    for rate, weight in ((0.1, 0.3), (0.6, 1.0)):  # three hits: the sum, and the sum cut down from 1.8
        table.copy_(start)
        _jose_batches._apply(table, torch.tensor([1, 1, 1]), rate * step.expand(3, 4), torch.full((3,), rate))
        torch.testing.assert_close(table[1], F.normalize(start[1] + weight * step, dim=0), atol=1e-7, rtol=0)
        assert torch.equal(table[[0, 2]], start[[0, 2]])


def test_a_joint_chunk_moves_rows_as_by_hand():
    x = rows(4, 7, seed=6)
    u, n, v, d = (F.normalize(row, dim=0) for row in x)
    for rule in ("paper", "plain"):
        words, anchors = torch.stack([u, n]), torch.stack([v, n, d])
        args = (torch.tensor([0]), torch.tensor([[0, 2]]), torch.tensor([[1]]), torch.tensor([[True]]))
        _jose_batches._move(words, anchors, *args, torch.tensor([0.1]), 2.0, RULES[rule], False)
        expected = triple_by_hand(u.tolist(), n.tolist(), [v.tolist(), d.tolist()], 2.0, 0.1, rule)
        for new, row in zip((words[0], words[1], anchors[0], anchors[2]), (*expected[:2], *expected[2]), strict=True):
            torch.testing.assert_close(new, torch.tensor(row, dtype=torch.float64), atol=1e-7, rtol=0)


# --- inference ---------------------------------------------------------------------------------------------------


@BACKEND
def test_inferred_documents_find_their_topic(backend):
    model = train_jose(topics(), CONFIG, backend=backend)
    before = model.word_vectors.clone(), model.doc_vectors.clone()
    fresh = topics(30, seed=7)
    found = model.infer(fresh, backend=backend)
    assert ((found @ model.doc_vectors.T).argmax(1) % TOPICS == torch.arange(30) % TOPICS).float().mean() > 0.95
    assert (found.norm(dim=1) - 1).abs().max() < 1e-6
    assert torch.equal(model.word_vectors, before[0]) and torch.equal(model.doc_vectors, before[1])


@pytest.mark.skipif(not HAS_NUMBA, reason="needs numba")
def test_inference_knows_no_neighbours_and_no_threads():
    model = train_jose(topics(), CONFIG, backend="kernel")
    fresh = topics(7, seed=7)
    whole = model.infer(fresh, backend="kernel")
    assert torch.equal(whole, torch.cat([model.infer([d], backend="kernel") for d in fresh]))
    assert torch.equal(whole, model.infer(fresh, workers=3, backend="kernel"))


@BACKEND
def test_inference_without_known_words(backend):
    model = train_jose(topics(6), CONFIG, backend=backend)
    found = model.infer([[], ["?"], ["w0", "?"]], backend=backend)
    assert found.norm(dim=1).tolist() == [0, 0, pytest.approx(1, abs=1e-6)]
    assert model.infer([], backend=backend).shape == (0, 16)
    with pytest.raises(TypeError, match="split it"):
        model.infer(["w0 w1"])
    with pytest.raises(ValueError, match="got 0 and 1"):
        model.infer([["w0"]], epochs=0)


# --- files -------------------------------------------------------------------------------------------------------


class Stop(Exception):
    pass


@BACKEND
@pytest.mark.parametrize("after", [1, 4])
def test_training_goes_on_bit_for_bit(tmp_path, monkeypatch, backend, after):
    documents = topics(12)
    monkeypatch.setattr(JoSETrainer.__init__, "__defaults__", (None, 1, "auto", "cpu", 90))  # several blocks a pass
    expected = train_jose(documents, CONFIG, backend=backend)
    turns = []

    def stop(progress):
        turns.append(progress)
        if len(turns) == after:
            raise Stop

    state = tmp_path / "state.safetensors"
    with pytest.raises(Stop):
        train_jose(documents, CONFIG, backend=backend, on_progress=stop, state_file=state, save_seconds=0)
    half = load_jose(state)
    assert not torch.equal(half.word_vectors, expected.word_vectors)
    assert half.words == expected.words
    resumed = []
    model = train_jose(documents, CONFIG, backend=backend, on_progress=resumed.append, state_file=state)
    assert resumed[0].words > turns[-1].words
    assert torch.equal(model.word_vectors, expected.word_vectors)
    assert torch.equal(model.context_vectors, expected.context_vectors)
    assert torch.equal(model.doc_vectors, expected.doc_vectors)
    again = train_jose(documents, CONFIG, backend=backend, state_file=state)  # nothing is left to do
    assert torch.equal(again.doc_vectors, expected.doc_vectors)
    assert [p.name for p in tmp_path.iterdir()] == [state.name]


def test_a_state_of_something_else_is_refused(tmp_path):
    state = tmp_path / "state"
    config = JoSEConfig(dim=4, min_count=1, epochs=1)
    model = train_jose([["a", "b"]], config, state_file=state)
    with pytest.raises(ValueError, match=r"other settings \(lr\)"):
        train_jose([["a", "b"]], JoSEConfig(dim=4, min_count=1, epochs=1, lr=0.1), state_file=state)
    with pytest.raises(ValueError, match="other documents"):
        train_jose([["b", "a"], ["b"]], config, state_file=state)
    model.save(state)
    with pytest.raises(ValueError, match="saved without its state"):
        train_jose([["a", "b"]], config, state_file=state)


def test_saved_vectors_come_back(tmp_path):
    model = train_jose([["a", "b", "\ud800 \n"], []], JoSEConfig(dim=4, min_count=1, epochs=2, subsample=0.0))
    model.save(tmp_path / "m")
    read = load_jose(str(tmp_path / "m"))
    assert (read.config, read.words) == (model.config, model.words)
    for name in ("counts", "word_vectors", "context_vectors", "doc_vectors", "document_trained"):
        assert torch.equal(getattr(read, name), getattr(model, name)), name
    assert read.document_trained.tolist() == [True, False]
    assert torch.equal(read.infer([["a"]]), model.infer([["a"]]))
    assert read.vectors.words == model.words


def test_damaged_files_are_named(tmp_path):
    path = tmp_path / "m"
    train_jose([["a", "b"]], JoSEConfig(dim=4, min_count=1, epochs=1)).save(path)
    whole = path.read_bytes()
    with pytest.raises(InputError, match=r"no file .*give one that train_jose"):
        load_jose(tmp_path / "none")
    with pytest.raises(InputError, match="is a folder; give the file in it"):
        load_jose(tmp_path)
    for size in (0, 7, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:size])
        with pytest.raises(InputError, match="truncated or damaged"):
            load_jose(path)
    save_file({"x": torch.zeros(1)}, path)
    with pytest.raises(InputError, match="no file of JoSE vectors"):
        load_jose(path)
    path.write_bytes(whole.replace(b'"format_version":"1"', b'"format_version":"2"'))
    with pytest.raises(InputError, match="reads up to 1; install a newer one"):
        load_jose(path)
    path.write_bytes(whole)
    tensors = load_file(path)
    save_file(tensors, path, {"format": "danlu-jose", "format_version": "1", "config": "{}", "epoch": "1", "done": "0",
                              "digest": ""})  # fmt: skip
    with pytest.raises(InputError, match="truncated or damaged"):  # 100 features by the settings, 4 in the file
        load_jose(path)


# --- settings ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dim": 1}, "dim must be a whole number of at least 2, got 1"),
        ({"epochs": 2.5}, "epochs must be a whole number of at least 1, got 2.5"),
        ({"window": 0}, "window must be a whole number of at least 1"),
        ({"margin": 0.0}, r"margin must lie in \(0, 2\]"),
        ({"margin": math.nan}, "margin must lie in"),
        ({"lr": math.nan}, "lr > 0"),
        ({"subsample": -1.0}, "subsample must be >= 0"),
        ({"seed": -1}, "seed in"),
        ({"step": "riemann"}, "one of jose_c, paper, plain"),
        ({"loss": "sum"}, "one of separate, joint"),
        ({"loss": "joint"}, "loss='joint' needs 'paper' or 'plain'"),
    ],
)
def test_settings_out_of_range(options, message):
    with pytest.raises(ValueError, match=message):
        JoSEConfig(**options)


@pytest.mark.parametrize(
    "change",
    [
        {"ids": np.array([0, 2], np.int32)},
        {"ids": np.array([0, -1], np.int32)},
        {"ids": np.array([0, 1])},
        {"offsets": np.array([0, 3])},
        {"offsets": np.array([0, 2, 1, 2])},
        {"counts": np.array([1, 0])},
        {"counts": np.array([1])},
    ],
)
def test_a_corpus_that_contradicts_itself_is_refused(change):
    corpus = build_corpus([["a", "b"]], 1)
    with pytest.raises(ValueError, match=r"contradicts itself.*build_corpus makes one"):
        JoSETrainer(dataclasses.replace(corpus, **change))


def test_backends_and_devices(monkeypatch):
    corpus = build_corpus([["a", "b"]], 1)
    with pytest.raises(ValueError, match="one of auto, kernel, torch, got 'numba'"):
        JoSETrainer(corpus, backend="numba")
    with pytest.raises(ValueError, match="at least 1, got 0"):
        JoSETrainer(corpus, workers=0)
    with pytest.raises(ValueError, match="works on the CPU, got device meta"):
        JoSETrainer(corpus, backend="kernel", device="meta")
    monkeypatch.setenv("DANLU_KERNELS", "off")
    assert JoSETrainer(corpus).backend == "torch"
    monkeypatch.delenv("DANLU_KERNELS")
    assert JoSETrainer(corpus).backend == ("kernel" if HAS_NUMBA else "torch")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert JoSETrainer(corpus).backend == "torch"
    with pytest.raises(ImportError, match=r"danlu\[fast\]"):
        JoSETrainer(corpus, backend="kernel")


def _child(queue):
    model = train_jose(topics(6), CONFIG)
    queue.put((model.word_vectors.double().sum().item(), model.doc_vectors.double().sum().item()))


@pytest.mark.slow
def test_another_process_finds_the_same():
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    child = context.Process(target=_child, args=(queue,))
    child.start()
    found = queue.get(timeout=120)
    child.join()
    model = train_jose(topics(6), CONFIG)
    assert found == (model.word_vectors.double().sum().item(), model.doc_vectors.double().sum().item())
