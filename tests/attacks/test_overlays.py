"""Overlays: what is covered, what stays, and where the image lies afterwards."""

import pytest
import torch

from onrw_core.attacks import attack


def test_border_is_light_grey_and_of_its_width(photo):
    result = attack("border", 0.25)(photo)
    assert result.images.shape[-2:] == (96 + 48, 120 + 48)
    assert torch.equal(result.images[..., 24:-24, 24:-24], photo)
    frame = result.images.clone()
    frame[..., 24:-24, 24:-24] = 242 / 255
    assert torch.allclose(frame, torch.tensor(242 / 255), atol=1e-6)
    assert result.geometry.apply(torch.tensor([24.0, 24.0])).tolist() == [0, 0]


def test_screenshot_with_border_is_a_border_and_a_screenshot(photo):
    page = attack("border", 0.08)(photo)
    shown = attack("screenshot", 0.75)(page.images)
    result = attack("screenshot-border", 0.75)(photo)
    # The border's attack rounds to 8 bit on the way, which JPEG may turn into a level or two.
    assert result.images.shape == shown.images.shape
    assert (result.images - shown.images).abs().mean() < 0.005
    assert torch.allclose(result.geometry.matrix, (page.geometry @ shown.geometry).matrix)


@pytest.mark.parametrize("strength", [0.1, 0.3])
def test_text_is_white_with_a_black_edge_at_its_height(photo, strength):
    images = photo[:1]
    result = attack("text", strength)(images).images
    changed = (result != images).any(1)[0]
    rows = changed.any(1).nonzero().flatten()
    assert (rows.float().mean() / 96).item() == pytest.approx(0.85, abs=0.06)
    assert 0.4 < (rows[-1] - rows[0] + 1).item() / (strength * 96) < 1.6
    assert result[..., changed].max() > 0.98 and result[..., changed].min() < 0.02
    assert (result[..., changed].amax(0) - result[..., changed].amin(0)).median() < 0.02  # grey letters


def test_text_moves_with_the_generator(photo, generator):
    rows = {
        (attack("text")(photo, generator(seed)).images != photo)
        .any(1)[0]
        .any(1)
        .nonzero()
        .float()
        .mean()
        .round()
        .item()
        for seed in range(6)
    }
    assert len(rows) > 2
