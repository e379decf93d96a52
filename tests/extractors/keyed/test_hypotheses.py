"""Hypotheses of a reading: their order, their places, and weights that sum to one at most."""

import pytest
import torch

from onrw_core.extractors.keyed.hypotheses import searched, unsearched


def projections(height: int, width: int, count: int = 2) -> torch.Tensor:
    return torch.rand(count, 1, height, width, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize(("shape", "geometries"), [((512, 600), 1), ((300, 400), 2)])
def test_the_image_as_received_comes_first_and_then_at_the_working_size(shape, geometries, count):
    made = unsearched(projections(*shape, count), 512, 1.0)
    assert len(made) == geometries * count * 2 and not any(one.searched for one in made)
    assert [one.upright for one in made] == [True, False] * count * geometries
    assert [one.projection for one in made[::2]] == [one.projection for one in made[1::2]]
    assert [one.projection for one in made[::2]] == list(range(count)) * geometries
    assert all(one.geometry is None for one in made[: 2 * count])
    for one in made[2 * count :]:
        assert torch.allclose(one.geometry.matrix.diagonal(), torch.tensor([512 / 300, 512 / 300, 1]).double())
    assert sum(one.weight for one in made) == pytest.approx(1)


def test_searched_weights_fall_and_stay_within_one():
    made = [one for stage in searched(projections(512, 600), 0.5) for one in stage]
    assert made and all(one.searched and one.weight > 0 for one in made)
    assert sum(one.weight for one in made) <= 0.5 + 1e-9
    heads = [i for i, one in enumerate(made) if i == 0 or one.weight > made[i - 1].weight]
    assert len(heads) >= 2  # several stages, each from its best candidate downwards
    for start, end in zip(heads, [*heads[1:], len(made)], strict=True):
        weights = [one.weight for one in made[start:end]]
        assert weights == pytest.approx([weights[0] / (i + 1) for i in range(len(weights))])
        assert weights[0] == pytest.approx(made[0].weight, rel=2)


def test_small_images_have_no_centre_to_search():
    sides = {one.side for stage in searched(projections(200, 200), 0.5) for one in stage}
    assert 256 not in sides
    sides = {one.side for stage in searched(projections(512, 512), 0.5) for one in stage}
    assert 256 in sides
