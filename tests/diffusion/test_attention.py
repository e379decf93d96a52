import pytest
import torch

from onrw_core.diffusion import attention
from onrw_core.diffusion.attention import (
    grid_size,
    probabilities,
    pseudo_mask,
    record_rule,
    self_attention_loss,
    sharpened,
)
from onrw_core.diffusion.model import AttentionMaps, Conditioning

TOKENS = 7


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def random_maps(layers: int = 2, batch: int = 1, grid: tuple[int, int] = (4, 6)) -> AttentionMaps:
    n, g = grid[0] * grid[1], generator()
    return AttentionMaps(
        {f"s{i}": torch.rand(batch, 2, n, n, generator=g).softmax(-1) for i in range(layers)},
        {f"c{i}": torch.rand(batch, 2, n, TOKENS, generator=g).softmax(-1) for i in range(layers)},
        {f"{kind}{i}": grid for i in range(layers) for kind in "sc"},
    )


def blob_maps(token: int, grid: tuple[int, int] = (8, 8)) -> AttentionMaps:
    """One layer that attends to `token` in the upper left quarter and to token 0 elsewhere."""
    attention = torch.zeros(1, 2, *grid, TOKENS)
    attention[..., 0] = 1.0
    attention[:, :, : grid[0] // 2, : grid[1] // 2, 0] = 0.2
    attention[:, :, : grid[0] // 2, : grid[1] // 2, token] = 0.8
    return AttentionMaps({}, {"c": attention.flatten(2, 3)}, {"c": grid})


def conditioning(**places) -> Conditioning:
    return Conditioning(torch.zeros(1, TOKENS, 3), **places)


@pytest.mark.parametrize("size", [(64, 64), (64, 96), (33, 50)])
def test_rule_follows_the_picture_size(size):
    record = record_rule(size)
    half = -(-size[0] // 2) * -(-size[1] // 2)
    quarter = -(-size[0] // 4) * -(-size[1] // 4)
    assert record("self", half) and record("self", quarter) and not record("self", size[0] * size[1])
    assert record("cross", quarter) and not record("cross", half) and not record("cross", quarter // 4)


@pytest.mark.parametrize("at_once", [2**24, 1000, 1])
def test_probabilities_averaged_over_heads(monkeypatch, at_once):
    """All heads at once, some at a time (8 in three parts), one at a time: the same, with the same gradient."""
    monkeypatch.setattr(attention, "AT_ONCE", at_once)
    g = generator()
    q, k = (torch.randn(2, 8, n, 4, generator=g, requires_grad=True) for n in (15, 11))
    each = probabilities(q, k)
    torch.testing.assert_close(each.sum(-1), torch.ones(2, 8, 15))
    mean = probabilities(q, k, mean=True)
    torch.testing.assert_close(mean, each.mean(1, keepdim=True))
    weights = torch.randn(mean.shape, generator=g)
    expected = torch.autograd.grad((each.mean(1, keepdim=True) * weights).sum(), (q, k))
    for found, wanted in zip(torch.autograd.grad((mean * weights).sum(), (q, k)), expected, strict=True):
        torch.testing.assert_close(found, wanted)


def test_grid_size_undoes_striding():
    assert grid_size(64 * 96, (64, 96)) == (64, 96)
    assert grid_size(16 * 24, (64, 96)) == (16, 24)
    assert grid_size(9 * 13, (33, 50)) == (9, 13)
    with pytest.raises(ValueError, match="1000 tokens"):
        grid_size(1000, (64, 64))


def test_self_attention_loss_is_the_mean_over_layers():
    maps, reference = random_maps(), random_maps()
    assert self_attention_loss(maps, reference) == 0
    maps.self_attention["s1"] = maps.self_attention["s1"] + 0.1
    assert self_attention_loss(maps, reference).item() == pytest.approx(0.005, rel=1e-4)


def test_self_attention_loss_has_a_gradient_in_the_first_branch_only():
    maps, reference = random_maps(batch=3), random_maps(batch=1)
    leaf = maps.self_attention["s0"].requires_grad_()
    fixed = reference.self_attention["s0"].requires_grad_()
    self_attention_loss(maps, reference).backward()
    assert leaf.grad.abs().sum() > 0 and fixed.grad is None


def test_self_attention_loss_refuses_different_layers():
    with pytest.raises(ValueError, match="2 and 1 layers"):
        self_attention_loss(random_maps(2), random_maps(1))
    with pytest.raises(ValueError, match="0 and 0 layers"):
        self_attention_loss(AttentionMaps(), AttentionMaps())


@pytest.mark.parametrize("places", [{"content": (2, 3)}, {"content": (3, 4), "word": (2,)}, {}])
def test_mask_is_where_the_tokens_are(places):
    mask = pseudo_mask(blob_maps(2), conditioning(**places), (32, 32))
    assert mask.shape == (1, 1, 32, 32) and mask.min() == 0 and mask.max() == 1
    assert mask[..., :12, :12].min() > 0.9 and mask[..., 20:, :].max() < 0.1 and mask[..., 20:].max() < 0.1


def test_mask_leaves_begin_and_padding_out():
    # Attention to the first token and to padding covers the rest of the picture, yet does not show.
    maps = blob_maps(2)
    maps.cross_attention["c"][..., 6] = maps.cross_attention["c"][..., 0]
    masks = [pseudo_mask(m, conditioning(content=(1, 2)), (8, 8)) for m in (maps, blob_maps(2))]
    assert torch.equal(*masks)


def test_chosen_word_moves_the_mask():
    maps = blob_maps(2)
    maps.cross_attention["c"][:, :, 40:, 4] = 0.7
    both = conditioning(content=(2, 4))
    assert pseudo_mask(maps, both, (8, 8))[0, 0, -1, -1] > 0.5
    word = conditioning(content=(2, 4), word=(2,))
    assert pseudo_mask(maps, word, (8, 8))[0, 0, -1, -1] == 0


def test_mask_averages_heads_and_layers_of_different_size():
    coarse, fine = blob_maps(2, (4, 4)), blob_maps(2, (8, 8))
    both = AttentionMaps(
        {},
        {"a": coarse.cross_attention["c"], "b": fine.cross_attention["c"]},
        {"a": (4, 4), "b": (8, 8)},
    )
    mask = pseudo_mask(both, conditioning(content=(2,)), (16, 16))
    assert mask[0, 0, 0, 0] > 0.999 and mask[0, 0, -1, -1] < 1e-3


def test_mask_follows_what_looks_at_each_other():
    # The word is seen in one corner of a thing that fills the left half; self-attention stays within the halves.
    heat = torch.full((1, 2, 4, 4, TOKENS), 0.1)
    heat[:, :, 0, 0, 2] = 0.9
    left = (torch.arange(64) % 8 < 4).float()
    same = (left[:, None] == left[None]).float()
    halves = (same / same.sum(-1, keepdim=True)).expand(1, 2, 64, 64)
    coarse = torch.full((1, 2, 16, 16), 1 / 16)
    maps = AttentionMaps({"f": halves, "g": coarse}, {"c": heat.flatten(2, 3)}, {"f": (8, 8), "g": (4, 4), "c": (4, 4)})
    mask = pseudo_mask(maps, conditioning(word=(2,)), (8, 8))
    assert mask[..., :4].min() > 0.99 and mask[..., 4:].max() < 0.01
    alone = pseudo_mask(AttentionMaps({}, maps.cross_attention, maps.sizes), conditioning(word=(2,)), (8, 8))
    assert alone[..., 5:, :4].max() < 0.01


def test_sharpened_mask_tells_two_sides_apart():
    ramp = torch.linspace(0, 1, 64).reshape(1, 1, 8, 8)
    sharp = sharpened(ramp)
    assert sharp.min() == 0 and sharp.max() == 1 and (sharp.flatten().diff() > 0).all()
    assert sharp[ramp > 0.75].mean() > ramp[ramp > 0.75].mean() and sharp[ramp < 0.25].mean() < ramp[ramp < 0.25].mean()
    assert torch.equal(sharpened(torch.ones(1, 1, 4, 4)), torch.ones(1, 1, 4, 4))


def test_mask_per_image_of_a_batch():
    maps = random_maps(batch=3)
    whole = pseudo_mask(maps, conditioning(content=(1, 2)), (8, 12))
    assert whole.shape == (3, 1, 8, 12)
    torch.testing.assert_close(whole.amin((1, 2, 3)), torch.zeros(3))
    torch.testing.assert_close(whole.amax((1, 2, 3)), torch.ones(3))
    assert not torch.equal(whole[0], whole[1])


def test_nothing_to_look_for_confines_nothing():
    flat = AttentionMaps({}, {"c": torch.full((1, 2, 16, TOKENS), 1 / TOKENS)}, {"c": (4, 4)})
    assert torch.equal(pseudo_mask(flat, conditioning(content=(1,)), (8, 8)), torch.ones(1, 1, 8, 8))
    assert torch.equal(pseudo_mask(blob_maps(2), conditioning(content=()), (8, 8)), torch.ones(1, 1, 8, 8))


def test_mask_refuses():
    with pytest.raises(ValueError, match="no cross-attention"):
        pseudo_mask(AttentionMaps(), conditioning(), (8, 8))
    with pytest.raises(ValueError, match="token 9 exceeds the 7"):
        pseudo_mask(blob_maps(2), conditioning(word=(9,)), (8, 8))
