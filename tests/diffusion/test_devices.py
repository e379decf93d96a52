"""Where networks run: what --device stands for, and the whole way on a CUDA device, where there is one."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from onrw_core.commands.models import chosen_device
from onrw_core.extractors.base import Extractor
from onrw_core.extractors.keyed.extractor import KeyedExtractor
from onrw_core.models import load_model
from onrw_core.payload.keys import Key
from onrw_core.pipeline import embed
from onrw_core.stages.noise_optimisation import PRESETS

CUDA = torch.cuda.is_available()


def test_device_names():
    assert chosen_device("cpu") == "cpu"
    assert chosen_device("auto") == ("cuda" if CUDA else "cpu")
    with pytest.raises(ValueError, match="choose cpu, cuda"):
        chosen_device("gpu")
    with pytest.raises(ValueError, match="choose cpu, cuda"):
        chosen_device("cuda:x")
    with pytest.raises(ValueError, match="CUDA devices here"):
        chosen_device("cuda:99")


def test_an_extractor_moves_its_networks():
    class Net(Extractor):
        name, num_bits = "net", 1

        def __init__(self):
            self.module = nn.Linear(2, 1)

        def logits(self, images, geometry=None):
            return images

    extractor = Net().to("meta")
    assert extractor.module.weight.device.type == "meta"


@pytest.mark.skipif(not CUDA, reason="needs a CUDA device")
@pytest.mark.parametrize("preset", ["fast", "reference", "paper"])
def test_marking_on_cuda(preset):
    loaded, extractor = load_model("mini", "cuda"), KeyedExtractor(Key(bytes(range(32))))
    image = torch.rand(3, 32, 24, generator=torch.Generator().manual_seed(0))
    image = nn.functional.interpolate(image[None], scale_factor=8, mode="bicubic")[0].clamp(0, 1)
    bits = torch.randint(2, (48,), generator=torch.Generator().manual_seed(1))
    mask = torch.ones(1, 1, 64, 48)
    marked = embed(
        image.cuda(), loaded.model, loaded.autoencoder, extractor, bits,
        positive=loaded.encode("a wall"), null=loaded.encode(""), size=192, mask=mask,
        settings=PRESETS[preset].with_(iterations=8, steps=2, attacks=8),
        generator=torch.Generator().manual_seed(2),
    )  # fmt: skip
    assert marked.image.is_cuda and marked.psnr == pytest.approx(42, abs=0.1)
    assert (extractor.logits(marked.image)[0].cpu() > 0).long().eq(bits).float().mean() > 0.9
