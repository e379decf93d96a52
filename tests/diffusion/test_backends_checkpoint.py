"""Checkpoints from disk: a diffusers folder and a single file, nothing pickled."""

import os

import pytest
import torch
from safetensors.torch import save_file

from onrw_core.diffusion.backends.checkpoint import load_checkpoint

from .test_backends import make_pipeline, tokenizer  # noqa: F401  (a fixture)


def test_folder(tokenizer, tmp_path):  # noqa: F811
    folder = tmp_path / "model"
    make_pipeline(tokenizer).save_pretrained(folder)
    model, autoencoder, encode = load_checkpoint(folder)
    latent = autoencoder.encode(torch.rand(1, 3, 64, 64))
    (x0,), _ = model.denoise(latent, torch.tensor(1.0), [encode("a cat")])
    assert x0.shape == latent.shape and not any(p.requires_grad for p in model.unet.parameters())


def test_folder_with_pickled_weights_is_refused(tokenizer, tmp_path):  # noqa: F811
    folder = tmp_path / "model"
    make_pipeline(tokenizer).save_pretrained(folder, safe_serialization=False)
    with pytest.raises(ValueError, match="cannot be loaded"):
        load_checkpoint(folder)


def test_bad_checkpoints(tmp_path):
    (tmp_path / "weights.ckpt").touch()
    save_file({"a": torch.zeros(1)}, tmp_path / "weights.safetensors")
    for name, reason in (
        ("none", "does not exist"),
        (".", "model_index.json is missing"),
        ("weights.ckpt", "only .safetensors"),
        ("weights.safetensors", "needs the configuration files.*as --config"),
    ):
        with pytest.raises(ValueError, match=reason):
            load_checkpoint(tmp_path / name)


def test_single_file_that_is_no_checkpoint(tokenizer, tmp_path):  # noqa: F811
    make_pipeline(tokenizer).save_pretrained(tmp_path / "weights")
    save_file({"a": torch.zeros(1)}, tmp_path / "weights.safetensors")
    with pytest.raises(ValueError, match="cannot be loaded"):
        load_checkpoint(tmp_path / "weights.safetensors")


def test_single_file_takes_its_configuration_from_another_folder(tokenizer, tmp_path):  # noqa: F811
    make_pipeline(tokenizer).save_pretrained(tmp_path / "configuration")
    save_file({"a": torch.zeros(1)}, tmp_path / "weights.safetensors")
    with pytest.raises(ValueError, match="cannot be loaded"):
        load_checkpoint(tmp_path / "weights.safetensors", config=tmp_path / "configuration")
    with pytest.raises(ValueError, match="which .*absent lacks"):
        load_checkpoint(tmp_path / "weights.safetensors", config=tmp_path / "absent")


def test_other_pipelines_are_refused(tmp_path):
    (tmp_path / "model_index.json").write_text('{"_class_name": "FluxPipeline"}')
    with pytest.raises(ValueError, match="it is a FluxPipeline; supported are StableDiffusionPipeline"):
        load_checkpoint(tmp_path)


def test_pipes_and_devices_are_not_read(tmp_path):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "model_index.json").symlink_to("/dev/zero")
    with pytest.raises(ValueError, match="is a pipe or a device"):
        load_checkpoint(tmp_path / "model")
    os.mkfifo(tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match="model.safetensors: is a pipe or a device"):
        load_checkpoint(tmp_path / "model.safetensors")
