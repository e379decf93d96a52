"""What a guided step keeps for its backward pass, counted on UNets without values (the device "meta").

    python tests/comfy/gradient_memory.py COMFYUI      with ComfyUI's interpreter, from the pack's folder

Four ways: plain; by blocks, as in ONRW's checkpointing; and both with weights that ComfyUI lends, of which the backward
pass keeps a copy each. A step has both branches of guidance in float16; attention keeps what torch's fused kernels do.
"""

from __future__ import annotations

import importlib.util
import sys
from contextlib import ExitStack, nullcontext
from pathlib import Path

import torch
from torch import Tensor

PACK = Path(__file__).parents[2]
GIB = 2**30
SD15 = {
    "in_channels": 4, "model_channels": 320, "num_res_blocks": [2, 2, 2, 2], "channel_mult": (1, 2, 4, 4),
    "transformer_depth": [1, 1, 1, 1, 1, 1, 0, 0], "transformer_depth_output": [1, 1, 1, 1, 1, 1, 1, 1, 1, 0, 0, 0],
    "transformer_depth_middle": 1, "context_dim": 768, "num_heads": 8, "num_head_channels": -1,
    "use_linear_in_transformer": False, "adm_in_channels": None,
}  # fmt: skip
SDXL = {
    "in_channels": 4, "model_channels": 320, "num_res_blocks": [2, 2, 2], "channel_mult": (1, 2, 4),
    "transformer_depth": [0, 0, 2, 2, 10, 10], "transformer_depth_output": [0, 0, 0, 2, 2, 2, 10, 10, 10],
    "transformer_depth_middle": 10, "context_dim": 2048, "num_heads": -1, "num_head_channels": 64,
    "use_linear_in_transformer": True, "adm_in_channels": 2816, "num_classes": "sequential",
}  # fmt: skip
SHARED = {
    "image_size": 32, "out_channels": 4, "use_spatial_transformer": True, "legacy": False,
    "use_temporal_attention": False, "use_temporal_resblock": False,
}  # fmt: skip


class Fused(torch.autograd.Function):
    """What the fused attention kernels keep: queries, keys, values, their output and a number for each query."""

    @staticmethod
    def forward(ctx, q: Tensor, k: Tensor, v: Tensor, heads: int) -> Tensor:
        out = torch.empty_like(q)
        ctx.save_for_backward(q, k, v, out, q.new_empty(q.shape[0], heads, q.shape[1], dtype=torch.float32))
        return out


def kept(unet: torch.nn.Module, side: int, context: int, by_blocks: bool, lent: bool) -> int:
    """Bytes that autograd keeps, weights themselves left out."""
    from onrw_core.diffusion.checkpointing import outermost, recomputed

    sizes: dict[int, tuple[Tensor, int]] = {}
    own = {id(parameter) for parameter in unet.parameters()}

    def keep(tensor: Tensor) -> Tensor:
        base = tensor if tensor._base is None else tensor._base
        if id(base) not in own:
            sizes[id(base)] = (base, base.numel() * base.element_size())
        return tensor

    def fused(function, q, k, v, heads, *args, **kwargs):
        return Fused.apply(q, k, v, heads)

    half = {"dtype": torch.float16, "device": "meta"}
    x = torch.empty(2, 4, side, side, **half, requires_grad=True)
    options = {"transformer_options": {"optimized_attention_override": fused}}
    inputs = [torch.empty(2, device="meta"), torch.empty(2, 77, context, **half)]
    if unet.num_classes is not None:
        options["y"] = torch.empty(2, 2816, **half)
    with ExitStack() as stack:
        for layer in unet.modules():
            if lent and hasattr(layer, "weight_function"):
                layer.weight_function, layer.bias_function = [torch.clone], [torch.clone]
        stack.enter_context(torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor))
        blocks = outermost(unet, ("ResBlock", "BasicTransformerBlock"))
        stack.enter_context(recomputed(blocks) if by_blocks else nullcontext())
        out = unet(x, *inputs, **options)
    del out
    return sum(size for _, size in sizes.values())


def main(comfy: Path) -> None:
    sys.path.insert(0, str(comfy))
    import comfy.options  # noqa: F401
    from comfy.cli_args import args

    args.cpu = True
    import comfy.ops
    from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel

    spec = importlib.util.spec_from_file_location("onrw_core", PACK / "onrw_core" / "__init__.py")
    sys.modules["onrw_core"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(sys.modules["onrw_core"])
    print("| UNet | weights | plain | by blocks | plain, lent | by blocks, lent |\n|-|-|-|-|-|-|")
    for name, config, side in (("SD1.5, 512 px", SD15, 64), ("SDXL, 1024 px", SDXL, 128)):
        cells = []
        for lent in (False, True):
            for by_blocks in (False, True):
                operations = comfy.ops.disable_weight_init
                unet = UNetModel(**SHARED, **config, dtype=torch.float16, device="meta", operations=operations)
                unet.requires_grad_(False)
                cells.append(kept(unet, side, config["context_dim"], by_blocks, lent) / GIB)
        weights = sum(p.numel() * p.element_size() for p in unet.parameters()) / GIB
        print(f"| {name} | {weights:.2f} GiB | " + " | ".join(f"{cell:.2f} GiB" for cell in cells) + " |")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
