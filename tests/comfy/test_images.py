"""Images as inputs of nodes: values outside [0, 1] are clamped, alpha is kept, and invalid images are refused."""

import importlib

import pytest
import torch


@pytest.fixture(scope="module")
def images(pack):
    return importlib.import_module(f"{pack.__name__}.nodes.images")


@pytest.fixture(scope="module")
def compose(pack):
    node = importlib.import_module(f"{pack.__name__}.nodes.denoise").ComposeNode
    settings = {"mode": "residual", "strength": "balanced", "quality": 90.0, "target_psnr": 42.0, "luma_only": False}

    def run(**inputs):
        with torch.inference_mode():  # as the server does
            return node.execute(**settings, **inputs).args

    return run


def noise(seed, channels=3, side=96):
    return torch.rand(1, side, side, channels, generator=torch.Generator().manual_seed(seed))


def test_an_image_that_overshoots_is_marked_like_the_clamped_one(compose):
    """ImageScale with bicubic of a text page leaves such values."""
    page = (noise(0) > 0.5).float()
    decoded = {"decoded_marked": 0.5 + 0.02 * noise(1), "decoded_original": torch.full((1, 96, 96, 3), 0.5)}
    marked, residual = compose(original=page * 1.4 - 0.2, **decoded)
    expected = compose(original=page, **decoded)
    assert torch.equal(marked, expected[0]) and torch.equal(residual, expected[1])
    assert -10 * (marked - page).square().mean().log10() == pytest.approx(42, abs=0.05)


def test_alpha_is_carried(compose):
    original = noise(0, channels=4)
    decoded = {"decoded_marked": noise(1), "decoded_original": noise(2)}
    marked, residual = compose(original=original, **decoded)
    assert torch.equal(marked[..., 3], original[..., 3]) and residual.shape[-1] == 3
    masked = compose(original=original[..., :3], mask=original[..., 3], **decoded)[0]  # alpha is a mask as well
    assert torch.equal(marked[..., :3], masked)


@pytest.mark.parametrize(
    ("image", "reason"),
    [
        (noise(0, channels=1), r"shape \(1, 96, 96, 1\)"),
        (noise(0)[0], r"shape \(96, 96, 3\)"),
        (noise(0)[:0], r"shape \(0, 96, 96, 3\)"),
        (noise(0, side=32), "32x32 pixels; at least 64"),
        (noise(0) / 0, "NaN or infinite"),
        (noise(0) * torch.nan, "NaN or infinite"),
    ],
)
def test_what_cannot_be_marked_is_refused_by_name(compose, image, reason):
    with pytest.raises(ValueError, match=f"^original: .*{reason}"):
        compose(original=image, decoded_marked=noise(1), decoded_original=noise(2))


def test_masks(images):
    mask = torch.tensor([[[-1.0, 0.5], [2.0, 0.0]], [[0.0, 0.0], [0.0, 0.0]]])
    opaque = torch.zeros(4, 2, 2, 3)
    first = [[[[0.0, 0.5], [1.0, 0.0]]]]
    assert [area.tolist() for area in images.areas(mask[:1], opaque)] == [first] * 4
    assert images.areas(mask[0], opaque)[3].tolist() == first and images.areas(None, opaque) == [None] * 4
    sticker = torch.cat([opaque, torch.tensor([[0.5, 0.5], [0.5, 1.0]]).expand(4, 2, 2)[..., None]], -1)
    assert images.areas(mask[:1], sticker)[0].tolist() == [[[[0.0, 0.25], [0.5, 0.0]]]]
    assert images.areas(None, sticker)[0].tolist() == [[[[0.5, 0.5], [0.5, 1.0]]]]
    for bad, reason in ((mask[1:], "empty"), (mask * torch.nan, "NaN")):
        with pytest.raises(ValueError, match=f"^mask: .*{reason}"):
            images.areas(bad, opaque[:1])
    with pytest.raises(ValueError, match=r"^mask 1 \(from 0\): is empty"):
        images.areas(mask, opaque)
    assert [bool(area.any()) for area in images.areas(mask, opaque, frames=True)] == [True, False, False, False]


def test_a_report_is_json_whatever_the_figures(pack):
    """Where nothing was added the PSNR is infinite."""
    to_json = importlib.import_module(f"{pack.__name__}.nodes.marking").to_json
    assert to_json({"psnr": float("inf")}) == '{"psnr": null}'
