"""Arguments of odd types: the functions of the library name the argument and the remedy, and no error is torch's."""

import math
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import onrw_core as onrw
from onrw_core import pipeline
from onrw_core.clip import Clip
from onrw_core.extractors.base import log10_rate, working_size
from onrw_core.extractors.keyed.extractor import KeyedExtractor
from onrw_core.extractors.loading import load_extractor
from onrw_core.extractors.reading import Reading, match_log10_p, message_log10_p
from onrw_core.mini import load_mini
from onrw_core.models import load_model
from onrw_core.payload import message
from onrw_core.payload.keys import Key, redacted
from onrw_core.payload.registry import Registry, perceptual_hash

SIDE = 64
KEY = Key(bytes(range(32)))
IMAGE = torch.rand(3, SIDE, SIDE, generator=torch.Generator().manual_seed(0)) * 0.5 + 0.25
QUICK = onrw.PRESETS["quick"].with_(iterations=1, attacks=1, warm_steps=1, target_psnr=40.0)
EXTRACTOR = KeyedExtractor(KEY, 32)
BITS = torch.randint(0, 2, (32,), generator=torch.Generator().manual_seed(3))
READING = Reading(False, 0.0, torch.zeros(32), message.Decoded(), 0.0)


def embed(image=IMAGE, **given):
    return onrw.embed(image, **({"key": KEY, "id": "1", "settings": QUICK, "size": SIDE} | given))


def extract(image=IMAGE, **given):
    return onrw.extract(image, **({"key": KEY, "search": False} | given))


def detect(image=IMAGE, **given):
    return onrw.detect(image, **({"search": False} | given))


MINI = load_mini("cpu")
PROMPT = MINI.encode("")


def embed_in_stages(image=IMAGE, **given):
    parts = {
        "model": MINI.model,
        "autoencoder": MINI.autoencoder,
        "extractor": EXTRACTOR,
        "bits": BITS,
        "positive": PROMPT,
        "null": PROMPT,
        "settings": QUICK,
        "generator": torch.Generator("cpu").manual_seed(0),
        "size": SIDE,
    }
    return pipeline.embed(image, **(parts | given))


def clip(first=IMAGE, frame=IMAGE, **given):
    parts = {
        "marked": given["marked"] if "marked" in given else embed_in_stages(),
        "model": MINI.model,
        "autoencoder": MINI.autoencoder,
        "generator": torch.Generator("cpu").manual_seed(0),
        "size": SIDE,
    }
    return Clip(first, **(parts | given)).mark(frame)


NOT_A_NUMBER = (None, "1", [1], True, math.nan)
BAD = {
    embed: {
        "key": (5, "my.key", [KEY]),
        "bits": ([0.0, 1.0],),
        "settings": (None, 5),
        "model": (None, 5, [1], b"mini", "a\0b"),
        "prompt": (None, ["a"]),
        "extractor": (None, 5, b"keyed", KeyedExtractor, "a\0b"),
        "mask": ("mask.png", IMAGE.numpy()),
        "label": (5, [1]),
        "size": (0, 96.5, "x", True),
        "seed": (*NOT_A_NUMBER, 1.5, -1, 2**64),
        "device": (None, 5, True, "meta", ""),
    },
    extract: {
        "key": (5, "my.key", [KEY]),
        "fpr": (*NOT_A_NUMBER, 0, 1),
        "frames": (*NOT_A_NUMBER, 1.5, 0, 2**70),
        "search": (None, torch.zeros(2)),
        "deep": (None, 1),
        "extractor": (None, 5),
        "device": (None, 5, "meta"),
    },
    detect: {"fpr": (*NOT_A_NUMBER, 0, 1), "search": (None, "no")},
    embed_in_stages: {
        "model": (None,),
        "autoencoder": (None,),
        "extractor": (None,),
        "bits": (None, [0, 1], BITS[:8], 2 * BITS, BITS.to("meta")),
        "positive": (None, ""),
        "null": ("",),
        "settings": (None, "quick"),
        "generator": (None, 0),
        "size": (0, 1.5, "x"),
        "mask": ("x", IMAGE),
        "on_forecast": (5,),
        "on_inversion": (5,),
        "on_state": (5,),
    },
    clip: {"marked": (None, IMAGE), "frame": (None, IMAGE[None], IMAGE.to("meta"))},
}


@pytest.mark.parametrize(
    ("function", "name", "value"),
    [
        pytest.param(function, name, value, id=f"{function.__name__} {name} {type(value).__name__} {number}")
        for function, arguments in BAD.items()
        for name, values in arguments.items()
        for number, value in enumerate(values)
    ],
)
def test_odd_arguments_are_named(function, name, value):
    bits = {"id": None} if function is embed and name == "bits" else {}
    with pytest.raises(ValueError, match=rf"\b{name}\b.*(;|:) ?\w+"):
        function(**{name: value}, **bits)


@pytest.mark.parametrize("given", [{"marked": None}, {"model": None}, {"autoencoder": None}, {"generator": 0}], ids=str)
def test_parts_of_a_clip_are_named(given):
    marked = embed_in_stages()
    with pytest.raises(ValueError, match=f"{next(iter(given))}: is a"):
        clip(**({"marked": marked} | given))
    with pytest.raises(ValueError, match="marked: is of a later frame"):
        clip(marked=replace(marked, watermarks=()))


def calls(registry):
    """Name in the error -> calls with a value of another kind."""
    return {
        "text": [lambda v: message.encode_text(v, KEY), redacted],
        "id": [lambda v: message.encode_id(v, KEY), registry.add, registry.lookup],
        "key": [
            lambda v: message.encode_text("a", v),
            lambda v: message.encode_id("1", v),
            lambda v: message.photo_id(v, "a"),
            lambda v: message.decode(BITS, v),
            KeyedExtractor,
            Key,
            Key.parse,
        ],
        "key file": [Key.load, Key.load_or_new, KEY.save],
        "variable": [Key.from_environment],
        "label": [lambda v: KEY.stream(v, 4)],
        "n": [lambda v: KEY.stream("a", v)],
        "num_bits": [message.capacity, message.false_accept, lambda v: message.random_id(KEY, None, v)],
        "generator": [lambda v: message.random_id(KEY, v)],
        "photo": [lambda v: message.photo_id(KEY, v)],
        "bits": [message.raw, message.bit_string],
        "values": [lambda v: message.decode(v, KEY)],
        "expected": [READING.match, lambda v: match_log10_p(BITS, v)],
        "message": [READING.carries],
        "corrected": [lambda v: message_log10_p(48, v)],
        "fpr": [log10_rate],
        "size": [lambda v: working_size(v, 96, 96)],
        "extractor": [lambda v: load_extractor(v, KEY)],
        "registry": [Registry, Registry.create],
        "time": [lambda v: registry.add("1", time=v)],
        "note": [lambda v: registry.add("1", note=v)],
        "file_hash": [registry.of_file],
        "image_hash": [registry.similar, lambda v: registry.has_another("1", v)],
        "distance": [lambda v: registry.similar("0" * 16, v)],
        "image": [perceptual_hash, READING.thumbnail, EXTRACTOR.read],
    }


@pytest.mark.parametrize("value", [-1, 2.5, b"x", [1], (), math.nan], ids=repr)
def test_every_part_names_what_it_cannot_use(tmp_path, value):
    registry = Registry.create(tmp_path / "ids.db")
    for name, functions in calls(registry).items():
        for function in functions:
            if (name, value) != ("time", 2.5):
                with pytest.raises(ValueError, match=rf"^{name}\b.*[;:] \w"):
                    function(value)
    assert registry.entries() == []


def test_text_that_is_no_unicode_is_named(tmp_path):
    registry = Registry.create(tmp_path / "ids.db")
    with pytest.raises(ValueError, match=r"note '\\ud800': has characters"):
        registry.add("1", note="\ud800")
    for path in ("a\0b", "\ud800"):
        with pytest.raises(ValueError, match="key file: .*give another path"):
            Key.load(path)


@pytest.mark.parametrize(
    ("name", "given"),
    [
        ("name", {"name": 5}),
        ("name", {"name": None}),
        ("device", {"name": "mini", "device": 0}),
        ("device", {"name": "mini", "device": "toaster"}),
        ("config", {"name": "mini", "config": 1}),
    ],
)
def test_a_model_that_cannot_be_loaded_is_named(name, given):
    with pytest.raises(ValueError, match=f"^{name}: "):
        load_model(**given)


@pytest.mark.parametrize("name", ["steps", "guidance", "composition", "luma_only", "quality", "label"])
@pytest.mark.parametrize("value", [b"x", [1], math.nan], ids=repr)
def test_settings_of_another_type_are_named(name, value):
    with pytest.raises(ValueError, match=f"^{name}: is"):
        replace(QUICK, **{name: value})


def inference_tensor(image):
    with torch.inference_mode():
        return image.clone()


UNUSUAL = {
    "float64": torch.Tensor.double,
    "parameter": torch.nn.Parameter,
    "graph": lambda image: image.clone().requires_grad_() * 1,
    "inference": inference_tensor,
    "strided": lambda image: image.permute(1, 2, 0).contiguous().permute(2, 0, 1),
    "negated": lambda image: torch.complex(torch.zeros_like(image), -image).conj().imag,
}


@pytest.fixture(scope="module")
def marked():
    return embed_in_stages()


@pytest.fixture(scope="module")
def reading(marked):
    return extract(marked.image)


@pytest.mark.parametrize("form", UNUSUAL.values(), ids=UNUSUAL)
def test_unusual_images_give_the_same(marked, reading, form):
    again = embed_in_stages(form(IMAGE))
    assert torch.equal(again.image, marked.image) and not again.image.requires_grad
    assert torch.equal(extract(form(marked.image)).logits, reading.logits)
    assert perceptual_hash(form(IMAGE)) == perceptual_hash(IMAGE)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float8_e4m3fn], ids=str)
def test_images_of_low_precision_are_their_values(dtype):
    low = IMAGE.to(dtype)
    assert torch.equal(extract(low).logits, extract(low.float()).logits)


def test_whole_numbers_may_be_of_numpy():
    assert torch.equal(embed(size=np.int64(SIDE), seed=np.uint8(7)).image, embed(seed=7).image)
    assert extract(fpr=np.float32(1e-3), frames=np.int32(2)).log10_p == extract().log10_p


@pytest.mark.parametrize(
    ("change", "before"),
    [
        (torch.set_default_dtype, torch.float32),
        (torch.set_default_device, None),
    ],
)
@pytest.mark.parametrize("verb", [embed, extract, detect, clip])
def test_defaults_of_torch_change_nothing(verb, change, before):
    expected = verb()
    change(torch.float64 if before else "meta")
    try:
        again = verb()
    finally:
        change(before)
    for name in ("image", "logits"):
        if hasattr(expected, name):
            assert torch.equal(getattr(again, name), getattr(expected, name))
    assert getattr(again, "log10_p", None) == getattr(expected, "log10_p", None)


def test_the_package_may_be_imported_under_other_defaults():
    code = (
        "import torch; torch.set_default_dtype(torch.float64); torch.set_default_device('meta')\n"
        "import onrw_core as onrw; key = onrw.Key(bytes(range(32)))\n"
        "image = torch.full((3, 64, 64), .5, device='cpu')\n"
        "print(onrw.extract(image, key=key).detected, torch.get_default_dtype(), torch.get_default_device())"
    )
    root = Path(onrw.__file__).parents[1]
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, cwd=root)
    assert done.stdout.split() == ["False", "torch.float64", "meta"], done.stderr
