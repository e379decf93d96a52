"""The working image and its windows."""

import pytest
import torch

from onrw_core.extractors.base import WORKING_PIXELS, default_working_size
from onrw_core.extractors.keyed.band import TILE
from onrw_core.stages.working_image import OVERLAP, WINDOW_SIDE, blend, iterations_at, padded, windows, working_image


def test_working_image_keeps_the_aspect():
    assert working_image(torch.rand(3, 1365, 2048), 512).shape == (1, 3, 512, 768)
    image = torch.rand(3, 128, 166)
    assert torch.equal(working_image(image, 128)[0], image)
    with pytest.raises(ValueError, match="65536x64, which is 524288x512.*crop"):
        working_image(torch.zeros(3, 64, 65536), 512)


def test_a_resized_image_stays_the_same_scene():
    """Its mean over blocks is kept, and what bicubic interpolation overshoots at an edge is clamped."""
    image = torch.nn.functional.interpolate(torch.rand(1, 3, 8, 8).round(), scale_factor=32)[0]
    working = working_image(image, 128)
    assert working.min() == 0 and working.max() == 1
    blocks = [torch.nn.functional.adaptive_avg_pool2d(each, 8) for each in (image[None], working)]
    assert (blocks[0] - blocks[1]).abs().max() < 0.05


def test_padding_repeats_the_edges():
    working = working_image(torch.rand(3, 100, 130), 128)
    assert working.shape[-2:] == (128, 166)
    result = padded(working)
    assert result.shape[-2:] == (128, 192)
    assert torch.equal(result[..., :166], working)
    assert torch.equal(result[..., 166:], working[..., -1:].expand(-1, -1, -1, 26))


@pytest.mark.parametrize("size", [(512, 768), (1024, 1024), (512, 2048), (64, 8192)])
def test_ordinary_sizes_are_one_window(size):
    assert windows(*size) == [(0, 0, *size)]


@pytest.mark.parametrize(
    "size", [(512, 2049), (512, 8192), (2048, 3000), (64, 8193), (8193, 515), (512, 65536), (64, 10000)]
)
def test_windows_share_the_tile_grid_and_overlap(size):
    parts = windows(*size)
    count = torch.zeros(size)
    for part in parts:
        assert part.top % TILE == part.left % TILE == 0 and max(part.size) < WINDOW_SIDE + TILE
        part.cut(count).add_(1)
    assert count.min() == 1
    for axis, side in enumerate(size):
        intervals = sorted({(part[axis], part[axis] + part[axis + 2]) for part in parts})
        assert intervals[0][0] == 0 and intervals[-1][1] == side
        assert all(end - start >= OVERLAP for (_, end), (start, _) in zip(intervals, intervals[1:], strict=False))


def test_blended_parts_of_an_image_are_the_image():
    image = torch.rand(1, 3, 1100, 1500, generator=torch.Generator().manual_seed(0))
    parts = windows(1100, 1500)
    assert len(parts) == 4
    whole = blend(parts, [part.cut(image) for part in parts], (1100, 1500))
    torch.testing.assert_close(whole, image)
    one = windows(300, 400)
    assert torch.equal(blend(one, [image[..., :300, :400]], (300, 400)), image[..., :300, :400])


def test_windows_fade_into_one_another():
    """A change of one window is felt with a weight that falls linearly over the overlap."""
    parts = windows(512, 3200)
    images = [torch.zeros(1, 1, *part.size) for part in parts]
    images[0] += 1
    line = blend(parts, images, (512, 3200))[0, 0, 0]
    start, end = parts[1].left, parts[0].width
    assert (line[:start] == 1).all() and (line[end:] == 0).all()
    steps = line[start - 1 : end + 1].diff()
    assert (steps <= 0).all() and steps.abs().max() < 1.5 / OVERLAP


def test_windows_that_are_left_out_stay_zero():
    parts = windows(512, 3200)
    whole = blend(parts[:1], [torch.ones(1, 1, *parts[0].size)], (512, 3200))
    assert (whole[..., : parts[0].width] == 1).all() and (whole[..., parts[0].width :] == 0).all()


def test_the_default_working_size_is_the_images_own_up_to_four_megapixels():
    own = ((512, 768), (768, 768), (1024, 1024), (1024, 1540), (1080, 1920), (2048, 2048))
    assert [default_working_size(*size) for size in ((300, 400), *own)] == [512, *(min(size) for size in own)]
    assert default_working_size(1224, 19600) == default_working_size(19600, 1224) == 512
    for height, width in ((4000, 6000), (4096, 4096), (3024, 4032), (2160, 3840), (2999, 3001)):
        size = default_working_size(height, width)
        assert size < 2048 or (height, width) == (4096, 4096)
        area = working_image(torch.zeros(3, height // 4, width // 4), size)[0, 0].numel()
        assert 0.99 * WORKING_PIXELS < area <= 1.002 * WORKING_PIXELS


def test_large_working_images_have_fewer_iterations():
    sizes = (512, 768), (1024, 1024), (1448, 1448), (2048, 2048), (512, 8192)
    assert [iterations_at(40, size) for size in sizes] == [40, 40, 20, 10, 40]
    assert iterations_at(1, (2048, 2048)) == 1
