"""The recall task of the synthesizer recipe: solvable by content alone, not by place; the control weighs all alike."""

import torch

from danlu.recipes.synthesizer import ARMS, SCALES, Mixer, episodes

CONFIG = SCALES["full"]


def test_the_nearest_picture_has_the_answer_and_stands_anywhere():
    pixels = torch.rand(300, 64, generator=torch.Generator().manual_seed(0))
    pictures, labels, answer = episodes(CONFIG, pixels, torch.Generator().manual_seed(1), 800)
    assert pictures.shape == (800, CONFIG.items + 1, 64)
    assert (labels[:, -1] == CONFIG.labels).all()
    assert labels[:, :-1].max() < CONFIG.labels
    nearest = (pictures[:, :-1] - pictures[:, -1:]).norm(dim=-1).argmin(1)  # (800,)
    assert torch.equal(labels.gather(1, nearest[:, None])[:, 0], answer)
    counts = torch.bincount(nearest, minlength=CONFIG.items)
    assert counts.min() > 25  # 50 expected at each place, standard error 7
    assert all(len(torch.unique(row, dim=0)) == CONFIG.items for row in pictures[:5, :-1])


def test_the_control_weighs_all_alike_and_every_arm_builds():
    x = torch.randn(2, 6, CONFIG.dim)
    keep = torch.tensor([[True] * 6, [True] * 4 + [False] * 2])
    for arm in ARMS:
        torch.manual_seed(0)
        mixer = Mixer(CONFIG, arm, 4, 8)
        torch.testing.assert_close(mixer(x, keep)[1, :4], mixer(x[1:, :4])[0], rtol=1e-4, atol=1e-5)
        weights = mixer.attention[0].weights(x, keep)
        assert torch.equal(weights[1, :, :, :4], torch.full((4, 6, 4), 0.25)) == (arm == "plain mean")
