import pytest
import torch

from onrw_core import pipeline
from onrw_core.extractors.base import Extractor
from onrw_core.extractors.keyed.extractor import KeyedExtractor
from onrw_core.imaging.files import encode
from onrw_core.imaging.pixels import as_mask, as_rgb, opaque_area
from onrw_core.payload.keys import Key
from onrw_core.stages.noise_optimisation import PRESETS


class Decoder(Extractor):
    """Says how bright a picture is."""

    name, num_bits = "brightness", 1

    def logits(self, images, geometry=None):
        return images.mean((1, 2, 3))[:, None]


READERS = {
    "keyed": lambda image: KeyedExtractor(Key(bytes(32))).read(image, search=False),
    "third party": lambda image: Decoder().read(image),
    "embed": lambda image: pipeline.embed(
        image, None, None, None, None, positive=None, null=None, settings=PRESETS["fast"], generator=None
    ),
    "file": lambda image: encode("a.png", image),
}


def test_values_outside_are_clamped_and_others_are_left_alone():
    image = torch.rand(3, 70, 80)
    assert as_rgb(image) is image
    assert torch.equal(as_rgb(image * 3 - 1), (image * 3 - 1).clamp(0, 1))
    assert as_rgb(image.double()).dtype == as_rgb(image.half()).dtype == torch.float32
    assert as_rgb(image.to(torch.float8_e4m3fn)).dtype == torch.float32
    assert not as_rgb(image.clone().requires_grad_()).requires_grad
    mask = torch.tensor([[[[-1.0, 0.5, 7.0]]]])
    assert as_mask(mask).tolist() == [[[[0.0, 0.5, 1.0]]]]


@pytest.mark.parametrize("reader", READERS.values(), ids=READERS)
@pytest.mark.parametrize(
    ("image", "reason"),
    [
        (torch.full((3, 96, 96), torch.nan), "NaN or infinite"),
        (torch.full((3, 96, 96), torch.inf), "NaN or infinite"),
        (torch.zeros(1, 96, 96), r"has shape \(1, 96, 96\)"),
        (torch.zeros(4, 96, 96), r"has shape \(4, 96, 96\)"),
        (torch.zeros(96, 96), r"has shape \(96, 96\)"),
        (torch.zeros(1, 1, 3, 96, 96), r"has shape \(1, 1, 3, 96, 96\)"),
        (torch.zeros(3, 0, 96), r"has shape \(3, 0, 96\)"),
        (torch.zeros(3, 96, 96, dtype=torch.uint8), "uint8"),
        (torch.zeros(3, 96, 96, dtype=torch.complex64), "complex64"),
        (torch.zeros(3, 96, 96, device="meta"), 'on the device "meta"'),
        (torch.zeros(3, 96, 96).to_sparse(), "sparse"),
        (torch.nested.nested_tensor([torch.zeros(96, 96)] * 3), "nested"),
        (torch.zeros(3, 96, 96).numpy(), "is a ndarray; give Tensor"),
    ],
    ids="nan inf grey alpha flat clips empty bytes complex meta sparse nested numpy".split(),
)
def test_what_is_no_picture_is_refused_by_name(reader, image, reason):
    with pytest.raises(ValueError, match=f": .*{reason}"):
        reader(image)


@pytest.mark.parametrize("reader", READERS.values(), ids=READERS)
def test_levels_of_8_bits_are_not_clamped_to_white(reader):
    levels = (torch.rand(3, 96, 96, generator=torch.Generator().manual_seed(0)) * 255).round()
    night = levels * (torch.arange(96) < 20)  # most of it is black
    for image, most in ((levels, 255), (levels * 0.99, 252.45), (night, 255)):
        with pytest.raises(
            ValueError, match=f": has values up to {most}; give values from 0 to 1, of 8 bits as x / 255"
        ):
            reader(image)


def test_an_overshoot_and_high_dynamic_range_are_clamped():
    """As of images in ComfyUI: filters overshoot, and lights are brighter than white."""
    image = torch.rand(3, 96, 96, generator=torch.Generator().manual_seed(0))
    lights = image.clone()
    lights[:, :40] *= 60
    for bright in (image * 1.5, image + 0.9, torch.ones(3, 96, 96) * 2, lights):
        assert torch.equal(as_rgb(bright), bright.clamp(0, 1))


@pytest.mark.parametrize("taker", ["embed", "file"])
def test_what_is_marked_or_saved_is_one_image(taker):
    with pytest.raises(ValueError, match=r": has shape \(1, 3, 96, 96\)"):
        READERS[taker](torch.zeros(1, 3, 96, 96))


def test_one_bad_pixel_is_enough():
    image = torch.rand(3, 96, 96)
    image[1, 2, 3] = torch.nan
    with pytest.raises(ValueError, match="original: .*NaN"):
        as_rgb(image, "original")


def test_pictures_smaller_than_a_tile_cannot_be_marked():
    with pytest.raises(ValueError, match="is 96x32 pixels; at least 64"):
        READERS["embed"](torch.zeros(3, 32, 96))


@pytest.mark.parametrize(
    ("mask", "reason"),
    [
        (torch.ones(8, 8), "has shape"),
        (torch.ones(2, 1, 8, 8), "has shape"),
        (torch.zeros(1, 1, 8, 8), "is empty"),
        (torch.full((1, 1, 8, 8), -1.0), "is empty"),
        (torch.full((1, 1, 8, 8), torch.nan), "NaN"),
        (torch.zeros(1, 1, 8, 8, device="meta"), "is on the device"),
        (torch.ones(1, 1, 8, 8).to_sparse(), "is a sparse"),
        (None, "is a NoneType"),
    ],
)
def test_bad_masks(mask, reason):
    with pytest.raises(ValueError, match=f"^mask: {reason}|^mask: .*{reason}"):
        as_mask(mask)


def test_transparent_areas_are_not_marked():
    alpha = torch.tensor([[0.0, 0.5], [1.0, 1.0]])
    assert opaque_area(None, None) is None and opaque_area(None, torch.ones(1, 2, 2)) is None
    assert opaque_area(None, alpha).tolist() == [[alpha.tolist()]]
    assert opaque_area(torch.full((1, 1, 4, 4), 0.5), alpha).tolist() == [[[[0.0, 0.25], [0.5, 0.5]]]]
    thin = torch.zeros(1, 1, 16, 16)
    thin[..., 6] = 1  # a line between the samples of a smaller image
    assert opaque_area(thin, torch.tensor([[0.0, 1.0], [1.0, 1.0]])).sum() > 0
