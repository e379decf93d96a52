"""Single .safetensors files in the layout of the original checkpoints, with the configuration of their pipeline.

The configuration folder has no weights, so all that is computed comes from the file.
"""

import json

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from onrw_core.commands import cli
from onrw_core.diffusion.backends.checkpoint import load_checkpoint
from onrw_core.diffusion.backends.diffusers import from_pipeline
from onrw_core.payload.keys import Key

from .original_layout import checkpoint_of
from .test_backends import make_pipeline, noise, tokenizer  # noqa: F401  (a fixture)
from .test_backends_layouts import sd3, sdxl

LAYOUTS = {
    "SD1": make_pipeline,
    "SD2 (v)": lambda made: make_pipeline(made, "v_prediction"),
    "SDXL": sdxl,
    "SD3": sd3,
}


@pytest.fixture(scope="module", params=LAYOUTS)
def files(request, tokenizer, tmp_path_factory):  # noqa: F811
    """A pipeline, its single file, and its configuration without weights."""
    folder = tmp_path_factory.mktemp("single")
    pipeline = LAYOUTS[request.param](tokenizer)
    pipeline.set_progress_bar_config(disable=True)
    save_file(checkpoint_of(pipeline), folder / "model.safetensors")
    pipeline.save_pretrained(folder / "configuration")
    weights = list((folder / "configuration").rglob("*.safetensors"))
    assert len(weights) >= 3
    for path in weights:
        path.unlink()
    return pipeline, folder / "model.safetensors", folder / "configuration"


def test_the_weights_of_the_file_are_those_of_the_pipeline(files):
    pipeline, file, config = files
    expected, found = from_pipeline(pipeline), load_checkpoint(file, config=config)
    image, x, sigma = torch.rand(1, 3, 32, 32), noise(), torch.tensor(0.7)
    latents = [autoencoder.encode(image) for _, autoencoder, _ in (expected, found)]
    assert torch.equal(*latents)
    assert torch.equal(*(autoencoder.decode(latents[0]) for _, autoencoder, _ in (expected, found)))
    prompts = [encode("a cat") for _, _, encode in (expected, found)]
    assert torch.equal(*(prompt.embeddings for prompt in prompts))
    clean = [
        model.denoise(x, sigma, [prompt])[0][0] for (model, *_), prompt in zip((expected, found), prompts, strict=True)
    ]
    assert torch.equal(*clean) and found[0].prediction == expected[0].prediction


@pytest.fixture
def photo(tmp_path):
    coarse = torch.randint(60, 200, (16, 16, 3), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    path = tmp_path / "photo.png"
    Image.fromarray(coarse.numpy()).resize((128, 128), Image.Resampling.BICUBIC).save(path)
    return path


def embed(photo, *options):
    key = photo.with_name("my.key")
    Key(bytes(range(32))).save(key)
    output = photo.with_name("marked.png")
    arguments = [
        "embed",
        photo,
        "-o",
        output,
        "--key",
        key,
        "--prompt",
        "a cat",
        "--size",
        128,
        "--iterations",
        10,
        "--json",
    ]
    return cli.main(list(map(str, [*arguments, *options]))), output


def test_the_command_marks_with_a_single_file(files, photo, capsys):
    _, file, config = files
    code, output = embed(photo, "--model", file, "--config", config)
    printed = capsys.readouterr()
    assert code == 0, printed.err
    (report,) = map(json.loads, printed.out.splitlines())
    assert report["readable"] is True and output.is_file()
    assert cli.main(["extract", str(output), "--key", str(photo.with_name("my.key"))]) == 0


def test_the_command_says_what_a_single_file_lacks(files, photo, capsys):
    _, file, config = files
    code, output = embed(photo, "--model", file)
    error = capsys.readouterr().err
    assert code == 2 and not output.exists()
    assert "needs the configuration files and tokenizers of its pipeline (model_index.json and folders)" in error
    assert "--config" in error and str(file.with_suffix("")) in error


def test_a_file_of_another_layout_than_its_configuration_is_refused(files, photo, capsys):
    _, file, config = files
    weights = load_file(file)
    save_file({"a." + name: weight for name, weight in weights.items()}, photo.with_name("other.safetensors"))
    code, output = embed(photo, "--model", photo.with_name("other.safetensors"), "--config", config)
    assert code == 2 and not output.exists() and "cannot be loaded" in capsys.readouterr().err
