"""Gradients through the patches that users put on a model: against finite differences, with and without checkpointing.

The patches are ComfyUI's own nodes. What cannot be right is refused, with the patch's name.
"""

import importlib

import pytest
import torch
from torch.utils.checkpoint import checkpoint as recompute

SHAPE = (1, 4, 32, 32)
SIGMA = torch.tensor(1.0)
GUIDANCE = 3.0
STEP = 0.05  # of the finite differences, along unit vectors
NODES = {
    "FreeU": ("freelunch", (1.3, 1.4, 0.9, 0.2)),
    "FreeU_V2": ("freelunch", (1.3, 1.4, 0.9, 0.2)),
    "HyperTile": ("hypertile", (32, 3, 1, False)),
    "PerturbedAttentionGuidance": ("pag", (3.0,)),
    "SelfAttentionGuidance": ("sag", (0.5, 2.0)),
    "TomePatchModel": ("tomesd", (0.3,)),
    "RescaleCFG": ("model_advanced", (0.7,)),
    "PatchModelAddDownscale": ("model_downscale", (1, 2.0, 0.0, 1.0, True, "bicubic", "bicubic")),
    "ModelSamplingDiscrete": ("model_advanced", ("v_prediction", True)),
}


def patched(model, name):
    """A MODEL with one of ComfyUI's patch nodes applied."""
    module, arguments = NODES[name]
    node = getattr(importlib.import_module(f"comfy_extras.nodes_{module}"), name)
    with torch.inference_mode():
        out = node.execute(model, *arguments) if hasattr(node, "execute") else node().patch(model, *arguments)
    return getattr(out, "args", out)[0]


@pytest.fixture(scope="module")
def double(files):
    """The toy MODEL in float64, so that finite differences are not lost in rounding."""
    import comfy.sd

    with torch.inference_mode():
        path = str(files / "models" / "checkpoints" / "tiny.safetensors")
        return comfy.sd.load_diffusion_model(path, model_options={"dtype": torch.float64})


def in_place(h, options):
    """A patch that spoils what autograd keeps: the square and the sine keep their input."""
    square = h * h
    h += 0.5 * torch.sin(h)
    return h + 0.1 * square


def replacing(q, k, v, extra):
    """The same for a patch in place of an attention."""
    weights = (q @ k.transpose(1, 2) * q.shape[-1] ** -0.5).softmax(-1)
    out = weights @ v
    weights *= 0
    return out


@pytest.fixture(scope="module", params=["none", "LoRA", "ControlNet", *NODES, "in place", "attention in place"])
def case(request, double, prompts, stock):
    model, (positive, negative) = double.clone(), prompts
    if request.param == "LoRA":
        with torch.inference_mode():
            model = stock.LoraLoaderModelOnly().load_lora_model_only(double, "tiny.safetensors", 1.0)[0]
    elif request.param == "ControlNet":
        positive, negative = request.getfixturevalue("with_control")
    elif request.param in NODES:
        model = patched(model, request.param)
    elif request.param == "in place":
        model.set_model_patch(in_place, "input_block_patch")
    elif request.param == "attention in place":
        model.set_model_attn2_replace(replacing, "middle", 0)
    return model, positive, negative


def unit_vectors(number):
    found = [torch.randn(SHAPE, generator=torch.Generator().manual_seed(seed)) for seed in range(10, 10 + number)]
    return [vector / vector.norm() for vector in found]


def test_gradient_is_that_of_finite_differences(case, adapter):
    model, positive, negative = case
    prompt, null = adapter.from_comfy(positive, adapter.POSITIVE), adapter.from_comfy(negative, adapter.NEGATIVE)
    start = torch.randn(SHAPE, generator=torch.Generator().manual_seed(0))
    weights = torch.randn(SHAPE, generator=torch.Generator().manual_seed(1))

    def work(network, _):
        def predict(x):
            return network.guided(x, SIGMA, prompt, null, GUIDANCE)[0]

        def by_blocks(x):
            with network.recomputing():
                return predict(x)

        def gradient(predict):
            torch.manual_seed(0)  # token merging and tiling draw numbers
            x = start.clone().requires_grad_()
            return torch.autograd.grad((predict(x) * weights).sum(), x)[0]

        def value(x):
            torch.manual_seed(0)
            with torch.no_grad():
                return (predict(x) * weights).sum().item()

        plain = gradient(predict)
        for way in (by_blocks, lambda x: recompute(by_blocks, x, use_reentrant=False)):
            assert torch.equal(gradient(way), plain)
        along = [(value(start + STEP * u) - value(start - STEP * u)) / (2 * STEP) for u in unit_vectors(3)]
        return torch.stack([(plain * u).sum() for u in unit_vectors(3)]), torch.tensor(along)

    found, expected = adapter.run(model, None, prompt, null, SHAPE, work)
    assert (found - expected).norm() / expected.norm() < 1e-3


def test_guidance_that_changes_its_input_is_refused_by_name(checkpoint, prompts, adapter):
    model = checkpoint[0].clone()

    def spoiling_guidance(args):
        return args["denoised"].mul_(2)

    model.set_model_sampler_post_cfg_function(spoiling_guidance)
    prompt, null = (adapter.from_comfy(p, role) for p, role in zip(prompts, ("positive", "negative"), strict=True))

    def work(network, _):
        x = torch.zeros(SHAPE, requires_grad=True)
        return network.guided(x, SIGMA, prompt, null, GUIDANCE)[0]

    with pytest.raises(ValueError, match="spoiling_guidance changes its inputs in place"):
        adapter.run(model, None, prompt, null, SHAPE, work)


def test_a_network_that_cannot_be_differentiated_is_an_error_with_the_names_of_patches(checkpoint, prompts, adapter):
    model = checkpoint[0].clone()

    def wrapper(apply, options):
        out = apply(options["input"], options["timestep"], **options["c"])
        square = out * out
        out += 1
        return square

    model.set_model_unet_function_wrapper(wrapper)
    prompt = adapter.from_comfy(prompts[0], adapter.POSITIVE)

    def work(network, _):
        x = torch.zeros(SHAPE, requires_grad=True)
        network.denoise(x, SIGMA, [prompt])[0][0].sum().backward()

    with pytest.raises(
        ValueError, match=r"a patch on it cannot be differentiated \(.*wrapper \(model_function_wrapper"
    ):
        adapter.run(model, None, prompt, None, SHAPE, work)


@pytest.mark.parametrize("kind", ["differentiable", "without a backward pass", "detached"])
def test_attention_override_is_kept_where_it_can_be(kind, checkpoint, prompts, adapter, caplog):
    calls = []

    class NoBackward(torch.autograd.Function):
        @staticmethod
        def forward(ctx, q):
            return q.clone()

        @staticmethod
        def backward(ctx, gradient):
            raise RuntimeError("no backward pass")

    def override(function, q, k, v, *args, **kwargs):
        calls.append(q.requires_grad)
        if kind == "without a backward pass":
            q = NoBackward.apply(q)
        out = 0.5 * function(q, k, v, *args, **kwargs)
        return out.detach() if kind == "detached" else out

    model = checkpoint[0].clone()
    model.model_options["transformer_options"]["optimized_attention_override"] = override
    prompt = adapter.from_comfy(prompts[0], adapter.POSITIVE)

    def work(network, _):
        x = torch.ones(SHAPE, requires_grad=True)
        out = network.denoise(x, SIGMA, [prompt])[0][0]
        assert torch.autograd.grad(out.sum(), x)[0].abs().sum() > 0
        return out.detach()

    found = adapter.run(model, None, prompt, None, SHAPE, work)
    stock = adapter.run(checkpoint[0], None, prompt, None, SHAPE, work)
    if kind == "differentiable":
        assert len(calls) > 2 and not caplog.records and not torch.allclose(found, stock)
    else:
        assert len(calls) == 1 and torch.equal(found, stock)
        assert "override test_patches" in caplog.text.replace("tests.comfy.", "") and "cannot be" in caplog.text


def test_kernels_without_a_backward_pass_are_not_used_in_controlnets(checkpoint, with_control, adapter, monkeypatch):
    from comfy.ldm.modules import attention

    prompt = adapter.from_comfy(with_control[0], adapter.POSITIVE)

    def work(network, _):
        x = torch.ones(SHAPE, requires_grad=True)
        return torch.autograd.grad(network.denoise(x, SIGMA, [prompt])[0][0].sum(), x)[0]

    expected = adapter.run(checkpoint[0], None, prompt, None, SHAPE, work)

    def fast(*args, **kwargs):
        return attention.attention_pytorch(*args, **kwargs).detach()

    monkeypatch.setattr(attention, "optimized_attention", fast)
    assert torch.equal(adapter.run(checkpoint[0], None, prompt, None, SHAPE, work), expected)
    assert attention.optimized_attention is fast


def test_the_name_of_a_model_tells_what_is_patched_onto_it(checkpoint, with_lora, prompts, adapter, stock, sampled):
    prompt = adapter.from_comfy(prompts[0], adapter.POSITIVE)

    def name(model):
        return adapter.run(model, None, prompt, None, SHAPE, lambda network, _: network.name)

    def lora(strength):
        with torch.inference_mode():
            return stock.LoraLoaderModelOnly().load_lora_model_only(checkpoint[0], "tiny.safetensors", strength)[0]

    plain = name(checkpoint[0])
    assert "+" not in plain and name(checkpoint[0].clone()) == plain
    models = [with_lora, lora(0.5), *(patched(checkpoint[0], node) for node in ("FreeU", "FreeU_V2", "HyperTile"))]
    models += [patched(checkpoint[0], "ModelSamplingDiscrete")]
    names = [name(model) for model in models]
    assert len({plain, *names}) == len(models) + 1 and all(n.startswith(f"{plain}+") for n in names)
    sampled(models[0], *prompts)
    assert name(checkpoint[0]) == plain  # while ComfyUI has another LoRA merged into the weights
    for node in ("SelfAttentionGuidance", "HyperTile"):  # their state changes as they run
        model = patched(checkpoint[0], node)
        before = name(model)
        sampled(model, *prompts)
        assert name(model) == before
    assert name(lora(1.0)) == names[0] and name(patched(checkpoint[0], "FreeU")) == names[2]


def test_lent_weights_that_no_copy_can_stand_for_are_told_from_patches(checkpoint, adapter, monkeypatch):
    reason = importlib.import_module(f"{adapter.__name__}.run")._no_gradient
    error = "one of the variables needed for gradient computation has been modified by an inplace operation"
    model = patched(checkpoint[0], "FreeU")
    assert "output_block_patch (output_block_patch)" in reason(model, error)
    layer = torch.nn.Linear(2, 2)  # of a custom node, without ComfyUI's way to change weights
    layer._v = None
    monkeypatch.setattr(model.model.diffusion_model, "custom", layer, raising=False)
    assert "its weights are offloaded or quantised in layers that cannot be differentiated (Linear)" in reason(
        model, error
    )
    assert reason(model, "CUDA out of memory") is None
