"""The speed benchmark: stopwatch, memory, the published loop, the command."""

import argparse
import json
import time

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from onrw_core.attacks import ATTACKS, MIX, TrainingMix, attack
from onrw_core.bench import published, speed, trial
from onrw_core.bench.memory import peak_memory
from onrw_core.bench.published import published_loop
from onrw_core.bench.stopwatch import PARTS, Stopwatch, TimedAutoencoder, TimedExtractor, TimedModel
from onrw_core.diffusion.model import AttentionMaps, Autoencoder, Conditioning, DiffusionModel
from onrw_core.extractors.base import Extractor
from onrw_core.models import Loaded
from onrw_core.stages.inversion import invert
from onrw_core.stages.progress import result_of

PROMPT = Conditioning(torch.ones(1, 2, 4))
SLEEP = 0.03


class Attentive(DiffusionModel):
    """Nearly the identity, with one self-attention map; counts its evaluations."""

    name = "attentive"

    def __init__(self):
        self.sigmas = torch.logspace(-1.5, 1, 100)
        self.conditionings = 0

    def denoise(self, x, sigma, conditionings, control=None):
        self.conditionings += len(conditionings)
        maps = AttentionMaps()
        h, w = x.shape[-2] // 2, x.shape[-1] // 2
        if control is not None and control.record("self", h * w):
            tokens = F.avg_pool2d(x, 2).flatten(2).transpose(1, 2)
            probabilities = (tokens @ tokens.transpose(1, 2)).softmax(-1)[:, None]
            maps = AttentionMaps({"mid": probabilities}, {}, {"mid": (h, w)})
        return [x - 0.01 * sigma * torch.tanh(x) for _ in conditionings], maps


class Blocks(Autoencoder):
    """Means of 8 x 8 pixels; decoding repeats them."""

    name, factor, channels = "blocks", 8, 3

    def encode(self, images):
        return F.avg_pool2d(images, 8) * 4 - 2

    def decode(self, latents):
        return F.interpolate(latents, scale_factor=8, mode="bilinear", align_corners=False) / 4 + 0.5


class Stripes(Extractor):
    """Two bits: the signs of upright and of level stripes, 16 pixels apart."""

    name, num_bits = "stripes", 2

    def logits(self, images, geometry=None):
        grey = images.mean(1)
        wave = [torch.cos(torch.arange(side) * torch.pi / 8) for side in grey.shape[-2:]]
        return 200 * torch.stack([(grey * wave[1]).mean((1, 2)), (grey * wave[0][:, None]).mean((1, 2))], 1)


class Slow(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        time.sleep(SLEEP)
        return x * 1

    @staticmethod
    def backward(ctx, gradient):
        time.sleep(2 * SLEEP)
        return gradient


class SlowBlocks(Blocks):
    def decode(self, latents):
        return super().decode(Slow.apply(latents).square())


def only(*names: str) -> TrainingMix:
    return TrainingMix(tuple(entry for entry in MIX if entry.name in names))


def inversion_of(image, model):
    return result_of(invert(model, Blocks().encode(image), PROMPT, PROMPT, steps=1, start_sigma=0.2))


@pytest.fixture
def image():
    small = torch.rand(1, 3, 5, 5, generator=torch.Generator().manual_seed(0))
    image = F.interpolate(small, size=(64, 64), mode="bicubic").clamp(0.2, 0.8)
    return (image * 255).round() / 255


def test_stopwatch_tells_parts_and_directions_apart():
    watch = Stopwatch()
    autoencoder, extractor = TimedAutoencoder(SlowBlocks(), watch), TimedExtractor(Stripes(), watch)
    watch.start()
    start = time.perf_counter()
    x = torch.ones(1, 3, 4, 4).requires_grad_()
    decoded = autoencoder.decode(x)
    time.sleep(SLEEP)
    extractor.loss(decoded, torch.tensor([0, 1])).sum().backward()
    watch.change("rest")
    total = time.perf_counter() - start
    assert x.grad.abs().sum() > 0
    assert sum(watch.seconds.values()) == pytest.approx(total, abs=0.005)
    assert watch.seconds["VAE"] >= 3 * SLEEP
    assert SLEEP <= watch.seconds["rest"] < 3 * SLEEP
    assert 0 < watch.seconds["extractor"] and "recomputation" not in watch.seconds


def test_stopwatch_counts_recomputation_apart():
    watch = Stopwatch()
    autoencoder = TimedAutoencoder(SlowBlocks(), watch)
    x = torch.ones(1, 3, 4, 4).requires_grad_()
    watch.start()
    torch.utils.checkpoint.checkpoint(autoencoder.decode, x, use_reentrant=False).sum().backward()
    watch.change("rest")
    assert watch.seconds["recomputation"] >= SLEEP
    assert watch.seconds["VAE"] >= 3 * SLEEP


def test_stopwatch_changes_nothing(image):
    watch = Stopwatch()
    model, timed = Attentive(), TimedModel(Attentive(), watch)
    x = torch.randn(1, 3, 8, 8, generator=torch.Generator().manual_seed(0)).requires_grad_()
    for m in (model, timed):
        (x0,), maps = m.denoise(x, torch.tensor(0.5), [PROMPT], speed_control())
        (gradient,) = torch.autograd.grad(x0.square().sum() + maps.self_attention["mid"].square().sum(), x)
        if m is model:
            expected = gradient
    assert torch.equal(gradient, expected)
    before = dict(ATTACKS)
    with watch.watching():
        assert torch.equal(attack("blur", 1)(image).images, before_blur(image, before))
        assert watch.seconds["attacks"] > 0
    assert before == ATTACKS


def speed_control():
    from onrw_core.diffusion.model import AttentionControl

    return AttentionControl(lambda kind, tokens: True)


def before_blur(image, kinds):
    return (kinds["blur"].function(image, 1.0, None).clamp(0, 1) * 255).round() / 255


def test_peak_memory_sees_a_large_tensor():
    with peak_memory() as peak:
        kept = torch.ones(20_000_000)
        time.sleep(0.05)
    if peak.megabytes is None:
        pytest.skip("no /proc here")
    assert 60 < peak.megabytes < 200 and len(kept)


def test_published_loop_runs_both_branches_and_learns(image, monkeypatch):
    monkeypatch.setattr(published, "training_mix", lambda: only("jpeg", "noise"))
    model = Attentive()
    inversion = inversion_of(image, model)
    model.conditionings = 0
    bits = 1 - (Stripes().logits(image)[0] > 0).long()  # what the photo does not say by itself
    pictures = published_loop(
        model,
        Blocks(),
        inversion,
        image,
        Stripes(),
        bits,
        learning_rate=0.05,
        target_psnr=20,
        luma_only=True,
        generator=torch.Generator().manual_seed(0),
    )
    first = next(pictures)
    assert model.conditionings == 4  # two branches with guidance in full
    for _ in range(40):
        last = next(pictures)
    assert first.shape == image.shape and not last.requires_grad
    assert torch.equal((Stripes().logits(last)[0] > 0).long(), bits)


@pytest.fixture
def command(tmp_path, monkeypatch, image):
    levels = (image[0].permute(1, 2, 0) * 255).round().byte().numpy().astype(np.uint8)
    for name in ("a", "b"):
        Image.fromarray(levels).save(tmp_path / f"{name}.png")
    monkeypatch.setattr(speed, "load_model", lambda *_: Loaded(Attentive(), Blocks(), lambda text: PROMPT))
    monkeypatch.setattr(speed, "load_extractor", lambda *_: Stripes())
    monkeypatch.setattr(trial, "training_mix", lambda: only("jpeg", "noise"))

    def call(*more):
        parser = argparse.ArgumentParser()
        speed.add_arguments(parser)
        path = tmp_path / "speed.json"
        fixed = [
            "--images",
            str(tmp_path),
            "--model",
            "x",
            "--size",
            "64",
            "--json",
            str(path),
            "--target-psnr",
            "20",
        ]
        assert speed.run(parser.parse_args([*fixed, "--breakdown-iterations", "2", *more])) == 0
        return json.loads(path.read_text())

    return call


def test_command_reports_both_loops(command, capsys, tmp_path):
    pytest.importorskip("matplotlib")
    report = command("--cap-iterations", "60", "--cap-seconds", "20", "--chart", str(tmp_path / "speed.png"))
    ours, theirs = report["ours"], report["published"]
    assert ours["success"] and ours["successes"] == 2
    assert theirs["learning_rate"] in speed.LEARNING_RATES and report["published_preset"] == "reference"
    ratios = [a["seconds"] / b["seconds"] for a, b in zip(theirs["photos"], ours["photos"], strict=True)]
    assert report["speedup_to_success"] == pytest.approx(sum(ratios) / 2)
    assert set(report["speedup_by_share"]) >= {"0.9", "0.95", "0.98"}
    for loop in (ours, theirs):
        assert set(loop["breakdown"]) == set(PARTS) and loop["breakdown"]["UNet"] > 0
        assert loop["breakdown"]["attacks"] > 0 and loop["breakdown"]["optimiser"] > 0
        assert loop["finite"] and loop["seconds_per_iteration"] > 0
    assert 0 < report["overhead"] < 1
    assert "speedup to success" in capsys.readouterr().out
    with Image.open(tmp_path / "speed.png") as chart:
        assert min(chart.size) > 300


def test_the_published_loop_has_a_path_of_its_own_and_a_cap(command, monkeypatch):
    paths = []

    def slow(model, autoencoder, inversion, image, *_, **__):
        paths.append((inversion.start_sigma, inversion.steps, inversion.guidance))
        while True:
            time.sleep(0.2)
            yield image  # never marked

    monkeypatch.setattr(trial, "published_loop", slow)
    one = ("--limit", "1", "--learning-rate", "0.01", "--required", "0.9", "--cap-ratio", "2")
    report = command(*one, "--published-preset", "paper")
    (photo,), (ours,) = report["published"]["photos"], report["ours"]["photos"]
    assert not photo["success"] and report["speedup_is_at_least"]
    assert 2 * ours["seconds"] <= photo["seconds"] < 2 * ours["seconds"] + 0.5
    assert report["speedup_by_share"]["0.9"]["at_least"] == 1
    assert paths == [(pytest.approx(1.0), 10, 4.5)] * 2
    command(*one, "--published-preset", "same")
    assert paths[-1] == (pytest.approx(0.2), 1, 1.0)


def test_photos_that_ours_fails_on_are_no_speedup(command):
    with pytest.raises(ValueError, match="--required"):
        command("--required", "1.01")


def test_cpu_time_leaves_out_waiting(command, monkeypatch):
    monkeypatch.setattr(trial, "published_loop", lambda *_, **__: iter(()))
    decode = Blocks.decode
    monkeypatch.setattr(Blocks, "decode", lambda self, latents: time.sleep(SLEEP) or decode(self, latents))
    for option, waits in ((), True), (("--cpu-time",), False):
        report = command("--iterations", "3", "--no-published", "--limit", "1", *option)
        assert (report["ours"]["breakdown"]["VAE"] >= SLEEP) == waits


def test_fixed_iterations_and_ours_alone(command):
    report = command("--iterations", "4", "--no-published", "--limit", "1")
    (photo,) = report["ours"]["photos"]
    assert photo["iterations"] == 4 and not photo["success"]
    assert "published" not in report and "speedup_to_success" not in report


def test_random_shapes_are_stable_diffusions():
    pytest.importorskip("diffusers")
    from onrw_core.bench.shapes import SD15, SDXL, VAE
    from onrw_core.diffusion.backends import ensure_torchvision

    ensure_torchvision()
    from diffusers import AutoencoderKL, UNet2DConditionModel

    with torch.device("meta"):
        counts = [
            sum(p.numel() for p in network.parameters())
            for network in (UNet2DConditionModel(**SD15), UNet2DConditionModel(**SDXL), AutoencoderKL(**VAE))
        ]
    assert counts[0] == 859_520_964 and counts[2] == 83_653_863
    assert counts[1] == pytest.approx(2_567e6, rel=0.005)  # without the 3 M of pooled text and sizes
