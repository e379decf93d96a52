import io

import numpy as np
import pytest
import torch
from PIL import Image
from ssimulacra2 import compute_ssimulacra2
from torch.nn.functional import interpolate

from onrw_core.imaging.rounding import round_8bit
from onrw_core.imaging.ssimulacra2 import Ssimulacra2, ssimulacra2


def picture(seed=0, size=(200, 261)):
    """A textured picture with edges: noise at several sizes, and flat discs."""
    generator = torch.Generator().manual_seed(seed)
    image = torch.full((1, 3, *size), 0.45)
    for cells, strength in ((4, 0.5), (12, 0.2), (60, 0.1)):
        image += strength * interpolate(torch.rand(1, 3, cells, cells, generator=generator) - 0.5, size, mode="bicubic")
    y, x = torch.meshgrid(torch.arange(size[0]), torch.arange(size[1]), indexing="ij")
    for _ in range(6):
        cx, cy, radius, *colour = torch.rand(6, generator=generator).tolist()
        disc = (y - cy * size[0]) ** 2 + (x - cx * size[1]) ** 2 < (10 + 30 * radius) ** 2
        image = torch.where(disc, torch.tensor(colour)[:, None, None], image)
    return round_8bit(image)


def noise(image, strength):
    return image + strength * torch.randn(image.shape, generator=torch.Generator().manual_seed(1))


def grey_noise(image, strength):
    return image + strength * torch.randn(1, 1, *image.shape[-2:], generator=torch.Generator().manual_seed(2))


def stains(image, strength):
    draw = torch.randn(1, 3, 40, 40, generator=torch.Generator().manual_seed(3))
    return image + strength * interpolate(draw, image.shape[-2:], mode="bicubic")


def jpeg(image, quality):
    file = io.BytesIO()
    pil(image).save(file, "JPEG", quality=quality)
    return torch.from_numpy(np.asarray(Image.open(file), np.float32) / 255).permute(2, 0, 1)[None]


def pil(image):
    return Image.fromarray((image[0].permute(1, 2, 0) * 255).round().byte().numpy())


def reference(marked, original, folder):
    paths = folder / "original.png", folder / "marked.png"
    for path, image in zip(paths, (original, marked), strict=True):
        pil(image).save(path)
    return compute_ssimulacra2(*map(str, paths))


CHANGES = [(noise, 0.004), (grey_noise, 0.008), (stains, 0.006), (stains, 0.03), (jpeg, 90), (jpeg, 20)]


@pytest.mark.parametrize("size", [(200, 261), (64, 47), (260, 256)])  # 5, 3 and 6 scales; odd sides
@pytest.mark.parametrize(("change", "strength"), CHANGES)
def test_equals_the_reference(change, strength, size, tmp_path):
    original = picture(size=size)
    marked = round_8bit(change(original, strength))
    expected = reference(marked, original, tmp_path)
    # What is left is what negligible weights add up to.
    assert ssimulacra2(marked, original).item() == pytest.approx(expected, abs=0.01)


def test_equal_pictures_have_100_and_a_finite_gradient():
    original = picture()
    marked = original.clone().requires_grad_()
    score = Ssimulacra2(original)(marked)
    score.sum().backward()
    assert score.item() == pytest.approx(100, abs=1e-3)
    assert marked.grad.isfinite().all()


def test_gradient_is_that_of_finite_differences():
    original = picture(size=(70, 80)).double()
    marked = noise(original, 0.01).requires_grad_()
    judge = Ssimulacra2(original)
    judge(marked).sum().backward()
    direction = torch.randn(marked.shape, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    step = 1e-6
    with torch.no_grad():
        slope = (judge(marked + step * direction) - judge(marked - step * direction)) / (2 * step)
    assert (marked.grad * direction).sum().item() == pytest.approx(slope.item(), rel=1e-3)


def test_batch_and_strips_change_nothing(monkeypatch):
    original = picture()
    marked = torch.cat([noise(original, 0.01), stains(original, 0.01)])
    whole = Ssimulacra2(original)(marked)
    assert whole.shape == (2,)
    monkeypatch.setattr("onrw_core.imaging.strips.PIXELS", 261 * 23)
    strips = Ssimulacra2(original)(marked)
    assert torch.allclose(whole, strips, atol=1e-4)
    assert torch.allclose(whole[1:], Ssimulacra2(original)(marked[1:]), atol=1e-4)


def test_what_has_no_weight_does_not_count():
    original = picture()
    marked = original.clone()
    marked[..., :130] = noise(original, 0.02)[..., :130]
    weight = torch.zeros(1, 1, *original.shape[-2:])
    weight[..., 170:] = 1  # beyond the reach of the coarser scales' neighbourhoods that matter
    assert Ssimulacra2(original)(marked).item() < 90
    assert Ssimulacra2(original, weight)(marked).item() > 95
    ones = torch.full_like(weight, 0.5)
    assert Ssimulacra2(original, ones)(marked).item() == pytest.approx(Ssimulacra2(original)(marked).item(), abs=1e-4)


def test_errors():
    with pytest.raises(ValueError, match="one RGB image"):
        Ssimulacra2(torch.rand(3, 20, 20))
    with pytest.raises(ValueError, match="at least 8 x 8"):
        Ssimulacra2(torch.rand(1, 3, 7, 20))
    with pytest.raises(ValueError, match="no pixel has weight"):
        Ssimulacra2(torch.rand(1, 3, 20, 20), torch.zeros(1, 1, 20, 20))
    with pytest.raises(ValueError, match="original's shape"):
        Ssimulacra2(torch.rand(1, 3, 20, 20))(torch.rand(1, 3, 20, 21))
