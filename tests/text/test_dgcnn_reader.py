"""The DGCNN reader: its equations by hand, padding, presence, reach, memory of a passage, gradients, messages."""

import pytest
import torch
import torch.nn.functional as F

from danlu.losses import focal_loss
from danlu.text import DGCNNReader, reader_log_probs

QUESTION = torch.tensor([[7, 8, 0], [9, 7, 8]])
PASSAGE = torch.tensor([[8, 7, 9, 9, 0, 0], [9, 9, 8, 7, 7, 8]])
Q_KEEP, P_KEEP = QUESTION > 0, PASSAGE > 0


def build(**options):
    torch.manual_seed(0)
    settings = {"num_tokens": 12, "dim": 6, "char_dim": 5, "dilations": (1, 2), "dropout": 0.0, **options}
    return DGCNNReader(**settings).double()


def test_the_equations_from_the_parts():
    reader = build(num_features=2).eval()
    features = torch.randn(2, 6, 2, dtype=torch.float64)
    out = reader(QUESTION, PASSAGE, question_mask=Q_KEEP, passage_mask=P_KEEP, features=features)
    for b in range(2):
        asked = reader.question(QUESTION[b : b + 1, : int(Q_KEEP[b].sum())])
        q = reader.question_pool(asked)  # eq. (1)
        size = int(P_KEEP[b].sum())
        x = reader.question.embed(PASSAGE[b : b + 1, :size])
        q_beside = q[:, None].expand(1, size, 6)
        x = torch.cat([x, q_beside, features[b : b + 1, :size]], -1) @ reader.join.weight.T  # eq. (2)
        h = torch.cat([reader.passage(x), q_beside], -1)  # eq. (3)
        both = h @ reader.output.weight.T + reader.output.bias
        torch.testing.assert_close(out.start[b, :size], both[0, :, 0])
        torch.testing.assert_close(out.end[b, :size], both[0, :, 1])
        g = reader.presence_pool(h) @ reader.presence.weight.T + reader.presence.bias  # eq. (4)
        torch.testing.assert_close(out.presence[b], g[0, 0])


def test_padding_has_no_influence():
    reader = build().eval()
    out = reader(QUESTION, PASSAGE, question_mask=Q_KEEP, passage_mask=P_KEEP)
    other = PASSAGE.masked_fill(~P_KEEP, 11), QUESTION.masked_fill(~Q_KEEP, 10)
    again = reader(other[1], other[0], question_mask=Q_KEEP, passage_mask=P_KEEP)
    torch.testing.assert_close(again.start[P_KEEP], out.start[P_KEEP])
    torch.testing.assert_close(again.presence, out.presence)
    alone = reader(QUESTION[:1, :2], PASSAGE[:1, :4])
    torch.testing.assert_close(alone.start[0], out.start[0, :4])


def test_probabilities_of_start_and_end():
    z, g = torch.randn(3, 4, dtype=torch.float64), torch.randn(3, dtype=torch.float64)
    log_p, log_not = reader_log_probs(z, g)
    p = torch.sigmoid(g)[:, None] * torch.sigmoid(z)  # eq. (5)
    torch.testing.assert_close(log_p.exp(), p)
    torch.testing.assert_close(log_not.exp(), 1 - p)  # eq. (6)
    plain = reader_log_probs(z, None)
    torch.testing.assert_close(plain[0].exp(), torch.sigmoid(z))
    torch.testing.assert_close(plain[1].exp(), torch.sigmoid(-z))


def test_one_number_silences_a_passage():
    log_p, log_not = reader_log_probs(torch.full((1, 5), 9.0), torch.tensor([-60.0]))
    assert (log_p < -59).all()
    assert log_not.tolist()[0] == pytest.approx([0.0] * 5, abs=1e-20)  # not the 0 of 1 - p in floats, but e^-60
    assert (log_not < 0).all()


def test_presence_can_be_left_out():
    reader = build(presence=False)
    assert reader(QUESTION, PASSAGE).presence is None
    assert not any("presence" in name for name, _ in reader.named_parameters())


def test_how_far_a_position_sees():
    """1 + 2 (1 + 2) positions of the passage, beside the question and the one number for the whole passage."""
    reader = build(presence=False).eval()
    table = reader.question.char_embedding.weight
    passage = torch.arange(1, 12)[None]
    out = reader(torch.tensor([[11]]), passage)
    (grad,) = torch.autograd.grad(out.start[0, 5], table)
    seen = {t for t in range(11) if grad[t + 1].abs().sum() > 0}
    assert seen == set(range(2, 9)) | {10}  # the last is the question's own token


def test_pairs_of_characters():
    reader = build(num_bigrams=5, bigram_dim=3)
    pairs = torch.ones_like(QUESTION), torch.ones_like(PASSAGE)
    out = reader(QUESTION, PASSAGE, *pairs, Q_KEEP, P_KEEP)
    out.start.sum().backward()
    assert [p.shape for p in reader.sparse_parameters()] == [torch.Size([5, 3])]
    assert reader.question.bigram_embedding.weight.grad.is_sparse


def test_gradcheck_of_the_loss():
    reader = build(sparse=False, gate_dropout=0.0)
    gold = torch.zeros(2, 6)
    gold[0, 1] = gold[1, 2] = 1
    weight = reader.join.weight

    def loss(w):
        out = torch.func.functional_call(reader, {"join.weight": w}, (QUESTION, PASSAGE, None, None, Q_KEEP, P_KEEP))
        return focal_loss(*reader_log_probs(out.start, out.presence), gold, P_KEEP, reduction="sum")

    assert torch.autograd.gradcheck(loss, weight.detach().clone().requires_grad_())


def test_token_dropout_makes_tokens_unknown_in_training_only():
    reader = build(token_dropout=0.999, gate_dropout=0.0)
    unknown = reader.eval()(torch.ones_like(QUESTION), torch.ones_like(PASSAGE))
    torch.testing.assert_close(reader.train()(QUESTION, PASSAGE).start, unknown.start)
    assert not torch.allclose(reader.eval()(QUESTION, PASSAGE).start, unknown.start)


@pytest.mark.slow
def test_it_learns_to_find_what_follows_the_question():
    """The answer is the token behind the question's token; what it is called changes from text to text."""
    reader = build(num_tokens=40, dim=24, char_dim=24, dilations=(1, 2, 1), gate_dropout=0.0).float()
    optimizer = torch.optim.Adam(reader.parameters(), 3e-3)
    for _ in range(300):
        passage = torch.stack([torch.randperm(30)[:10] + 8 for _ in range(32)])
        place = torch.randint(0, 9, (32,))
        question = passage.gather(1, place[:, None])
        gold = F.one_hot(place + 1, 10)
        out = reader(question, passage)
        loss = focal_loss(*reader_log_probs(out.start, out.presence), gold)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert (out.start.argmax(1) == place + 1).float().mean() > 0.9


def test_messages():
    with pytest.raises(ValueError, match=r"num_features=2 and needs features \(2, 6, 2\), got none"):
        build(num_features=2)(QUESTION, PASSAGE)
    with pytest.raises(ValueError, match=r"num_features=0 and needs features None, got \(2, 6, 1\)"):
        build()(QUESTION, PASSAGE, features=torch.zeros(2, 6, 1))
    with pytest.raises(ValueError, match=r"token_dropout must lie in \[0, 1\), got 1"):
        build(token_dropout=1)
    with pytest.raises(ValueError, match=r"num_features must be at least 0, got -1"):
        build(num_features=-1)
    with pytest.raises(ValueError, match=r"got \(2, 3\) and \(3,\)"):
        reader_log_probs(torch.zeros(2, 3), torch.zeros(3))
