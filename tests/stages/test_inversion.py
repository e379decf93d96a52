import json
from dataclasses import replace

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from onrw_core.diffusion.model import Conditioning
from onrw_core.diffusion.ode import schedule
from onrw_core.stages.inversion import METHODS, Inversion, invert, replay, replay_step
from onrw_core.stages.nested import unpack, unsupported
from onrw_core.stages.progress import result_of

from ..dummies import DummyModel, prompt

GUIDANCE, STEPS = 4.5, 8


def latent() -> torch.Tensor:
    return torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(7))


def inverted(model: DummyModel, method: str = "ddim", **options) -> Inversion:
    options = {"steps": STEPS, "guidance": GUIDANCE, "start_sigma": 5.0, **options}
    return result_of(invert(model, latent(), prompt(1), prompt(2), method=method, **options))


def error(model: DummyModel, inversion: Inversion, **options) -> float:
    x = result_of(replay(model, inversion, **options))
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


def test_null_text_starts_from_the_null_prompt_and_negative_prompt_takes_the_prompt():
    model = DummyModel()
    untuned = inverted(model, "null-text", inner_steps=0)
    assert torch.equal(untuned.null_embeddings, prompt(2).embeddings.expand_as(untuned.null_embeddings))
    assert torch.equal(inverted(model, "negative-prompt").null.embeddings, prompt(1).embeddings)


@pytest.mark.parametrize("prediction", ["eps", "v", "flow"])
def test_fixed_point_is_retraced_under_guidance(prediction):
    model = DummyModel(prediction)
    refined = inverted(model, "fixed-point", inner_steps=30)
    assert error(model, refined) < 0.01 * error(model, inverted(model))
    for i, x in replay(model, refined):
        assert (x - refined.latents[i]).abs().max() < 0.02 * refined.latents[i].std()


@pytest.mark.parametrize("gain", [-1.7, -3.0])
def test_fixed_point_is_damped_where_plain_iteration_diverges(gain):
    """Where the step back to x overshoots, the iteration converges by halving, and never returns less than its best."""
    from onrw_core.stages.inversion import _retraced

    sigma, sigma_next = torch.tensor(1.0), torch.tensor(2.0)
    x = torch.ones(1, 4, 8, 8)
    # The Euler step from sigma_next back to sigma is y -> (1 - gain) y: its inverse is y = x / (1 - gain).
    euler_slope = (sigma - sigma_next) / sigma_next

    def denoise(y, level):
        return y * (1 + gain / euler_slope)

    best, loss = _retraced(denoise, x, x.clone(), sigma, sigma_next, 40)
    assert loss < 1e-6
    torch.testing.assert_close(best, x / (1 - gain), rtol=1e-2, atol=1e-2)


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
    states = []
    inversion = result_of(invert(model, latent(), prompt(1), prompt(2), method="null-text", **options), states.append)
    assert [s.stage for s in states] == ["invert"] * 3 + ["null-text"] * 3
    assert [s.step for s in states] == [1, 2, 3, 1, 2, 3]
    assert all(s.loss is not None for s in states[3:])
    assert inversion.method == "null-text" and inversion.steps == 3


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
    moved = result_of(replay(model, inversion, x))
    moved.sum().backward()
    assert x.grad.abs().sum() > 0
    other = result_of(replay(model, inversion, positive=prompt(5)))
    assert not torch.allclose(other, moved)
    step, maps = replay_step(model, inversion, 0, inversion.latents[0])
    torch.testing.assert_close(step, dict(replay(model, inversion))[1])
    assert not maps.self_attention


def test_without_a_null_prompt_the_prompt_takes_its_place():
    inversion = inverted(DummyModel())
    assert inversion.unconditional is inversion.null
    assert replace(inversion, null=None).unconditional is inversion.positive


def test_replay_refuses_another_model():
    model = DummyModel()
    inversion = inverted(model)
    model.name = "other"
    with pytest.raises(ValueError, match="'dummy', not 'other'"):
        next(replay(model, inversion))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "magic"}, "magic"),
        ({"at": "middle"}, "middle"),
        ({"steps": 0}, "steps"),
        ({"start_sigma": 99.0}, "sigma"),
    ],
)
def test_invert_refuses(options, message):
    with pytest.raises(ValueError, match=message):
        inverted(DummyModel(), **options)


def test_null_text_needs_a_null():
    with pytest.raises(ValueError, match="give null"):
        result_of(invert(DummyModel(), latent(), prompt(1), steps=2, guidance=GUIDANCE, method="null-text"))


@pytest.mark.parametrize("method", METHODS)
def test_file_round_trip(tmp_path, method):
    model = DummyModel()
    inversion = inverted(model, method, inner_steps=2)
    positive = replace(inversion.positive, word=(2,), pooled=torch.ones(1, 3))
    inversion = replace(inversion, positive=positive)
    inversion.save(tmp_path / "x.safetensors")
    loaded = Inversion.load(tmp_path / "x.safetensors")
    assert torch.equal(loaded.latents, inversion.latents) and torch.equal(loaded.sigmas, inversion.sigmas)
    assert (loaded.null_embeddings is None) == (inversion.null_embeddings is None)
    assert loaded.positive.content == positive.content and loaded.positive.word == (2,)
    assert torch.equal(loaded.positive.pooled, positive.pooled)
    assert (loaded.method, loaded.model) == (method, "dummy")
    assert error(model, loaded) == error(model, inversion)
    assert [p.name for p in tmp_path.iterdir()] == ["x.safetensors"]


def test_prompt_that_a_file_cannot_hold_is_asked_for(tmp_path):
    model = DummyModel()
    inversion = inverted(model)
    opaque = Conditioning(inversion.positive.embeddings, opaque=object(), missing=("control", "hooks"))
    replace(inversion, positive=opaque).save(tmp_path / "x")
    loaded = Inversion.load(tmp_path / "x")
    assert loaded.positive.incomplete and not opaque.incomplete
    with pytest.raises(ValueError, match=r"\(control, hooks\); give the conditioning again"):
        next(replay(model, loaded))
    next(replay(model, loaded, positive=opaque))
    replace(inversion, null=opaque).save(tmp_path / "x")
    with pytest.raises(ValueError, match=r"\(control, hooks\); give the conditioning again"):
        next(replay(model, Inversion.load(tmp_path / "x")))


def test_options_of_a_prompt_come_back_from_a_file(tmp_path):
    inversion = inverted(DummyModel())
    options = {
        "attention_mask": torch.tensor([[1, 1, 0]]),
        "guidance": 3.5,
        "reference_latents": [torch.ones(1, 4, 2, 2), torch.zeros(1, 4, 2, 2)],
        "area": (8, 8, 0, 0),
        "nothing": None,
    }
    assert not [*unsupported(options)]
    given = replace(inversion.positive, options=options)
    replace(inversion, positive=given, null=given).save(tmp_path / "x")
    loaded = Inversion.load(tmp_path / "x")
    for found in (loaded.positive.options, loaded.null.options):
        assert {key: type(value) for key, value in found.items()} == {k: type(v) for k, v in options.items()}
        assert torch.equal(found["attention_mask"], options["attention_mask"])
        assert all(map(torch.equal, found["reference_latents"], options["reference_latents"]))
        assert (found["guidance"], found["area"], found["nothing"]) == (3.5, (8, 8, 0, 0), None)
    parts = {"control": object(), "strength": 1.0, "more": [{"hooks": object()}], "half": float("nan")}
    assert [*unsupported(parts)] == ["control", "hooks", "half"]


@pytest.mark.parametrize("value", [{"set": []}, {"list": 3}, {"tuple": {}}, {"dict": []}, {"tensor": 1}, [], {}])
def test_parts_of_no_known_kind_are_refused(value):
    assert unpack({"list": [{"tuple": [1, None]}]}, {}) == [(1, None)]
    with pytest.raises(ValueError, match="of no known kind"):
        unpack({"list": [value]}, {})


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
    metadata = {"format": "onrw-inversion", "version": "2", "inversion": json.dumps({"guidance": 1.0})}
    save_file(tensors, bad, metadata=metadata)
    with pytest.raises(ValueError, match="misses"):
        Inversion.load(bad)
    save_file(tensors, bad, metadata={**metadata, "version": "3"})
    with pytest.raises(ValueError, match="format 3, this version reads 2"):
        Inversion.load(bad)


def damaged(header=None, **tensors):
    """A change of a saved inversion: parts of its header, and tensors."""
    return header or {}, tensors


NO_OPTIONS = {"options": {"dict": {}}, "missing": []}
DAMAGES = {
    "0-d sigmas": damaged(sigmas=torch.tensor(1.0)),
    "NaN sigmas": damaged(sigmas=torch.tensor([torch.nan, 0.0])),
    "ascending sigmas": damaged(sigmas=torch.tensor([0.0, 1.0])),
    "one sigma": damaged(sigmas=torch.tensor([1.0]), latents=torch.zeros(1, 1, 4, 8, 8)),
    "negative sigmas": damaged(sigmas=torch.tensor([1.0, -1.0])),
    "whole numbers": damaged(sigmas=torch.tensor([1, 0])),
    "another number of latents": damaged(latents=torch.zeros(5, 1, 4, 8, 8)),
    "flat latents": damaged(latents=torch.zeros(2)),
    "infinite latents": damaged(latents=torch.full((2, 1, 4, 8, 8), torch.inf)),
    "null embeddings of other steps": damaged(null_embeddings=torch.zeros(9, 2, 4)),
    "a flat prompt": damaged(**{"positive.embeddings": torch.zeros(4)}),
    "method 7": damaged({"method": 7}),
    "guidance in words": damaged({"guidance": "much"}),
    "guidance that is none": damaged({"guidance": float("nan")}),
    "guidance beyond floats": damaged({"guidance": 10**400}),
    "a model that is a list": damaged({"model": ["dummy"]}),
    "missing parts in words": damaged(
        {"positive": {"content": None, "word": None, "options": {"dict": {}}, "missing": 1}}
    ),
    "options of no kind": damaged({"positive": {"content": None, "word": None, "options": {"set": []}, "missing": []}}),
    "options without a tensor": damaged(
        {"positive": {"content": None, "word": None, "options": {"dict": {"a": {"tensor": "b"}}}, "missing": []}}
    ),
    "a prompt that is a number": damaged({"positive": 3}),
    "tokens beyond the prompt": damaged({"positive": {**NO_OPTIONS, "content": [10**6], "word": None}}),
    "tokens before the prompt": damaged({"positive": {**NO_OPTIONS, "content": [-1], "word": None}}),
    "tokens between tokens": damaged({"positive": {**NO_OPTIONS, "content": [0.5], "word": None}}),
    "tokens in words": damaged({"positive": {**NO_OPTIONS, "content": ["first"], "word": None}}),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_parts_are_refused(tmp_path, damage):
    header, changed = DAMAGES[damage]
    path = tmp_path / "bad.safetensors"
    positive = Conditioning(torch.zeros(1, 2, 4), content=(0,), word=(1,))
    Inversion(torch.zeros(2, 1, 4, 8, 8), torch.tensor([1.0, 0.0]), None, positive, positive).save(path)
    assert Inversion.load(path).steps == 1
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
    old = json.loads(metadata["inversion"])
    save_file(load_file(path) | changed, path, metadata | {"inversion": json.dumps(old | header)})
    with pytest.raises(ValueError, match=r"bad.safetensors: .*invert the image again"):
        Inversion.load(path)


@pytest.mark.parametrize("text", ["[" * 100_000, "{", "7", '"text"', "null", "[]", "9" * 5000])
def test_headers_that_are_none(tmp_path, text):
    path = tmp_path / "bad.safetensors"
    save_file({"a": torch.zeros(1)}, path, {"format": "onrw-inversion", "version": "2", "inversion": text})
    with pytest.raises(ValueError, match=r"bad.safetensors: .*invert the image again"):
        Inversion.load(path)


def test_failed_save_leaves_the_old_file(tmp_path, monkeypatch):
    inversion = inverted(DummyModel())
    inversion.save(tmp_path / "x")
    before = (tmp_path / "x").read_bytes()

    def fail(*_, **__):
        raise OSError("disk full")

    monkeypatch.setattr("onrw_core.stages.inversion_record.save", fail)
    with pytest.raises(OSError, match="disk full"):
        inversion.save(tmp_path / "x")
    assert (tmp_path / "x").read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["x"]
