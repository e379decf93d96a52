import json
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file

from onrw_core.inversion import METHODS, Inversion, invert, replay, replay_step, run
from onrw_core.model import Conditioning
from onrw_core.ode import schedule

from .dummies import DummyModel, prompt

GUIDANCE, STEPS = 4.5, 8


def latent() -> torch.Tensor:
    return torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(7))


def inverted(model: DummyModel, method: str = "ddim", **options) -> Inversion:
    options = {"steps": STEPS, "guidance": GUIDANCE, "start_sigma": 0.9 if model.flow else 5.0, **options}
    return run(invert(model, latent(), prompt(1), prompt(2), method=method, **options))


def error(model: DummyModel, inversion: Inversion, **options) -> float:
    *_, (_, x) = replay(model, inversion, **options)
    return (x - inversion.latents[-1]).square().mean().item()


@pytest.mark.parametrize("prediction", ["eps", "v", "flow"])
@pytest.mark.parametrize("at", ["source", "target"])
def test_null_text_closes_the_gap_that_guidance_opens(prediction, at):
    model = DummyModel(prediction)
    plain = inverted(model, at=at)
    floor, drift = error(model, plain, guidance=1.0), error(model, plain)
    assert drift > 2 * floor
    tuned = inverted(model, "null-text", at=at, inner_steps=30, learning_rate=0.05)
    assert tuned.null_embeddings.shape == (STEPS, *prompt(2).embeddings.shape[1:])
    assert (drift - error(model, tuned)) / (drift - floor) > 0.8


@pytest.mark.parametrize("prediction", ["eps", "v", "flow"])
def test_fixed_point_is_retraced_under_guidance(prediction):
    model = DummyModel(prediction)
    refined = inverted(model, "fixed-point", inner_steps=30)
    assert error(model, refined) < 0.01 * error(model, inverted(model))
    for i, x in replay(model, refined):
        assert (x - refined.latents[i]).abs().max() < 0.02 * refined.latents[i].std()


def test_negative_prompt_undoes_guidance():
    model = DummyModel()
    inversion = inverted(model, "negative-prompt")
    assert error(model, inversion) == pytest.approx(error(model, inverted(model), guidance=1.0), rel=1e-3)


def test_pivots_descend_from_noise_to_the_latent():
    model = DummyModel()
    inversion = inverted(model)
    assert inversion.latents.shape == (STEPS + 1, 1, 4, 8, 8)
    assert torch.equal(inversion.latents[-1], latent())
    assert torch.equal(inversion.sigmas, schedule(model.sigmas, STEPS, 5.0))
    assert inversion.steps == STEPS and inversion.start_sigma == pytest.approx(5.0)
    assert inversion.latents[0].std() > 3 * inversion.latents[-1].std()


def test_states_tell_the_progress():
    model = DummyModel()
    options = {"steps": 3, "guidance": GUIDANCE, "inner_steps": 2}
    states = list(invert(model, latent(), prompt(1), prompt(2), method="null-text", **options))
    assert [s.stage for s in states] == ["invert"] * 3 + ["null-text"] * 3 + ["done"]
    assert [s.step for s in states[:6]] == [1, 2, 3, 1, 2, 3]
    assert all(s.inversion is None for s in states[:-1]) and states[-1].inversion.method == "null-text"
    assert all(s.loss is not None for s in states[3:6])


def test_inner_loop_stops_early():
    model = DummyModel(text=0.0)
    model.calls = 0
    inverted(model, "null-text", inner_steps=50, tolerance=10.0)
    assert model.calls == 3 * STEPS  # up, and down with one look at each branch


def test_null_text_at_guidance_one_is_plain_inversion():
    assert inverted(DummyModel(), "null-text", guidance=1.0).null_embeddings is None


def test_null_text_works_in_inference_mode():
    model = DummyModel()
    with torch.inference_mode():
        inversion = inverted(model, "null-text", inner_steps=3)
    expected = inverted(DummyModel(), "null-text", inner_steps=3)
    torch.testing.assert_close(inversion.null_embeddings, expected.null_embeddings)


def test_nothing_but_the_pivots_keeps_a_graph():
    inversion = inverted(DummyModel(), "null-text", inner_steps=2)
    assert not inversion.latents.requires_grad and not inversion.null_embeddings.requires_grad
    assert torch.is_grad_enabled()


def test_small_start_sigma():
    inversion = inverted(DummyModel(), steps=1, start_sigma=0.041)
    torch.testing.assert_close(inversion.sigmas, torch.tensor([0.041, 0.0292]), rtol=0, atol=1e-4)


def test_replay_takes_another_noise_prompt_and_gradient():
    model = DummyModel()
    inversion = inverted(model)
    x = (inversion.latents[0] + 0.1).requires_grad_()
    *_, (_, moved) = replay(model, inversion, x)
    moved.sum().backward()
    assert x.grad.abs().sum() > 0
    *_, (_, other) = replay(model, inversion, positive=prompt(5))
    assert not torch.allclose(other, moved)
    step, maps = replay_step(model, inversion, 0, inversion.latents[0])
    torch.testing.assert_close(step, dict(replay(model, inversion))[1])
    assert not maps.self_attention


def test_replay_refuses_another_model():
    model = DummyModel()
    inversion = inverted(model)
    model.name = "other"
    with pytest.raises(ValueError, match="'dummy', not 'other'"):
        next(replay(model, inversion))


@pytest.mark.parametrize("options", [{"method": "magic"}, {"at": "middle"}, {"steps": 0}, {"start_sigma": 99.0}])
def test_invert_refuses(options):
    with pytest.raises(ValueError):
        inverted(DummyModel(), **options)


def test_null_text_needs_a_null():
    with pytest.raises(ValueError, match="give null"):
        run(invert(DummyModel(), latent(), prompt(1), steps=2, guidance=GUIDANCE, method="null-text"))


@pytest.mark.parametrize("method", METHODS)
def test_file_round_trip(tmp_path, method):
    model = DummyModel()
    inversion = inverted(model, method, inner_steps=2, image="ab" * 32)
    positive = replace(inversion.positive, word=(2,), pooled=torch.ones(1, 3))
    inversion = replace(inversion, positive=positive)
    inversion.save(tmp_path / "x.safetensors")
    loaded = Inversion.load(tmp_path / "x.safetensors")
    assert torch.equal(loaded.latents, inversion.latents) and torch.equal(loaded.sigmas, inversion.sigmas)
    assert (loaded.null_embeddings is None) == (inversion.null_embeddings is None)
    assert loaded.positive.content == positive.content and loaded.positive.word == (2,)
    assert torch.equal(loaded.positive.pooled, positive.pooled)
    assert (loaded.method, loaded.model, loaded.image) == (method, "dummy", "ab" * 32)
    assert error(model, loaded) == error(model, inversion)
    assert [p.name for p in tmp_path.iterdir()] == ["x.safetensors"]


def test_prompt_that_a_file_cannot_hold_is_asked_for(tmp_path):
    model = DummyModel()
    inversion = inverted(model)
    opaque = Conditioning(inversion.positive.embeddings, opaque=object())
    replace(inversion, positive=opaque).save(tmp_path / "x")
    loaded = Inversion.load(tmp_path / "x")
    assert loaded.requires_positive
    with pytest.raises(ValueError, match="give the conditioning again"):
        next(replay(model, loaded))
    next(replay(model, loaded, positive=opaque))


def test_bad_files_are_named(tmp_path):
    good, bad = tmp_path / "good", tmp_path / "bad.safetensors"
    inverted(DummyModel()).save(good)
    with pytest.raises(FileNotFoundError, match="absent"):
        Inversion.load(tmp_path / "absent")
    for data in (b"", b"hello", good.read_bytes()[:-100]):
        bad.write_bytes(data)
        with pytest.raises(ValueError, match="bad.safetensors: truncated"):
            Inversion.load(bad)
    tensors = load_file(good)
    save_file(tensors, bad)
    with pytest.raises(ValueError, match="not an inversion"):
        Inversion.load(bad)
    metadata = {"format": "onrw-inversion", "version": "1", "inversion": json.dumps({"guidance": 1.0})}
    save_file(tensors, bad, metadata=metadata)
    with pytest.raises(ValueError, match="misses"):
        Inversion.load(bad)
    save_file(tensors, bad, metadata={**metadata, "version": "2"})
    with pytest.raises(ValueError, match="format 2, this version reads 1"):
        Inversion.load(bad)


def test_failed_save_leaves_the_old_file(tmp_path, monkeypatch):
    inversion = inverted(DummyModel())
    inversion.save(tmp_path / "x")
    before = (tmp_path / "x").read_bytes()

    def fail(*_, **__):
        raise OSError("disk full")

    monkeypatch.setattr("onrw_core.trajectory.save", fail)
    with pytest.raises(OSError, match="disk full"):
        inversion.save(tmp_path / "x")
    assert (tmp_path / "x").read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["x"]
