"""KSampler, then ONRW, then KSampler again on a real card: random weights of SD1.5's and SDXL's shapes, in float16.

    python tests/comfy/on_a_card.py COMFYUI            with ComfyUI's interpreter and PYTHONPATH as tests/comfy has it
    python tests/comfy/on_a_card.py COMFYUI --toy      the same on the CPU with the toy checkpoint, to try this script

Each model runs with all of the card's memory, and with less than its weights need. What has to hold: ONRW's gradients
are finite and its nodes finish, and KSampler gives the identical image before and after. Prints a table in Markdown.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

HERE = Path(__file__).parent
PACK = HERE.parents[1]
VAE = {
    "double_z": True, "z_channels": 4, "resolution": 256, "in_channels": 3, "out_ch": 3, "ch": 128,
    "ch_mult": [1, 2, 4, 4], "num_res_blocks": 2, "attn_resolutions": [], "dropout": 0.0,
}  # fmt: skip
ENOUGH: tuple[str, ...] = ()
SHARE = 0.6  # of a model's weights, which is what the card has left of its memory in the second run


def write_checkpoint(folder: Path, name: str) -> int:
    """Write a checkpoint of random weights; its bytes. `name` is "SD15" or "SDXL"."""
    import comfy.ldm.models.autoencoder as autoencoder
    import comfy.ldm.modules.diffusionmodules.openaimodel as openaimodel
    import comfy.ops
    import comfy.sd1_clip
    import comfy.sdxl_clip
    import comfy.supported_models
    import gradient_memory
    import tiny
    import torch
    from safetensors.torch import save_file

    half = {"dtype": torch.float16, "device": "cpu"}
    shape, clip = {
        "SD15": (gradient_memory.SD15, comfy.sd1_clip.SD1ClipModel),
        "SDXL": (gradient_memory.SDXL, comfy.sdxl_clip.SDXLClipModel),
    }[name]
    operations = comfy.ops.disable_weight_init
    unet = openaimodel.UNetModel(**gradient_memory.SHARED, **shape, **half, operations=operations)
    config = getattr(comfy.supported_models, name)({})
    state = {f"model.diffusion_model.{key}": value for key, value in tiny.randomise(unet, 1).items()}
    vae = autoencoder.AutoencoderKL(ddconfig=VAE, embed_dim=4)
    state |= {f"first_stage_model.{key}": value for key, value in tiny.randomise(vae, 2).items()}
    state |= config.process_clip_state_dict_for_saving(tiny.randomise(clip(**half), 3))
    path = folder / f"{name}.safetensors"
    save_file({key: value.half().contiguous() for key, value in state.items()}, path)
    return path.stat().st_size


def prompts(checkpoint: str, side: int) -> tuple[dict, dict]:
    """Two prompts in ComfyUI's API format on one checkpoint: a KSampler, and ONRW's four stages."""
    stages = json.loads((PACK / "workflows" / "api" / "Four stages.json").read_text(encoding="utf-8"))
    number = {node["_meta"]["title"]: key for key, node in stages.items()}
    loader = {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": checkpoint}}
    loaders = [key for key, node in stages.items() if node["class_type"] == "ONRW_LoadMini"]
    stages |= {key: {**loader, "_meta": {"title": "Checkpoint"}} for key in loaders}
    stages[number["Working size"]]["inputs"] |= {"width": side, "height": side}
    stages[number["Null-Text Inversion"]]["inputs"] |= {
        "preset": "fast",
        "steps": 2,
        "start_sigma": 0.2,
        "guidance": 1.0,
    }
    stages[number["Optimize Watermark Noise"]]["inputs"] |= {"iterations": 3}
    del stages[number["Read Watermark (Verify Provenance)"]]
    model = loaders[0]
    sampler = {
        "model": [model, 0], "positive": ["text", 0], "negative": ["text", 0], "latent_image": ["empty", 0],
        "seed": 3, "steps": 2, "cfg": 4.0, "sampler_name": "euler", "scheduler": "normal", "denoise": 1.0,
    }  # fmt: skip
    nodes: dict[str, tuple[str, dict[str, Any]]] = {
        "text": ("CLIPTextEncode", {"clip": [model, 1], "text": "a girl"}),
        "empty": ("EmptyLatentImage", {"width": side, "height": side, "batch_size": 1}),
        "sample": ("KSampler", sampler),
        "decode": ("VAEDecode", {"samples": ["sample", 0], "vae": [model, 2]}),
        "save": ("SaveImage", {"images": ["decode", 0], "filename_prefix": "sample"}),
    }
    stock = {
        key: {"class_type": kind, "inputs": inputs, "_meta": {"title": key}} for key, (kind, inputs) in nodes.items()
    }
    return stock | {model: stages[model]}, stages


def trial(root: Path, base: Path, checkpoint: str, side: int, device: tuple[str, ...]) -> Iterator[str]:
    """The cells of one row of the table."""
    import server as tools

    stock, stages = prompts(checkpoint, side)
    server = tools.Server(root, base, device)

    def run(prompt: dict) -> dict:
        entry = server.run(prompt)
        if entry["status"]["status_str"] != "success":
            raise RuntimeError(f"{tools.failure(entry)}\n{server.log[-3000:]}")
        return entry["outputs"]

    def sampled(seed: int) -> np.ndarray:
        stock["sample"]["inputs"]["seed"] = seed
        return np.asarray(Image.open(server.images(run(stock)["save"])[0]))

    try:
        before = sampled(3)
        start = time.monotonic()
        outputs = run(stages)
        seconds = time.monotonic() - start
        title = next(key for key, node in stages.items() if node["_meta"]["title"] == "Report")
        report = json.loads(outputs[title]["text"][0])
        sampled(4)  # so that the next one is not taken from the cache
        yield f"{seconds:.1f} s"
        yield json.dumps({key: report[key] for key in ("iterations", "psnr") if key in report})
        yield "identical" if np.array_equal(before, sampled(3)) else "DIFFERENT"
        yield "DynamicVRAM" if "DynamicVRAM support detected and enabled" in server.log else "no DynamicVRAM"
    finally:
        server.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("comfyui", type=Path)
    parser.add_argument("--toy", action="store_true")
    arguments = parser.parse_args()
    root = arguments.comfyui.expanduser().resolve()
    sys.path[:0] = [str(HERE), str(root)]  # in this order: ComfyUI has a module "server" as well
    import comfy.options  # noqa: F401
    from comfy.cli_args import args

    args.cpu = True  # this process only writes files
    import comfy.sd  # noqa: F401
    import tiny
    import tiny_models
    import torch

    with tempfile.TemporaryDirectory() as folder:
        base = Path(folder)
        for name in ("custom_nodes", "input", "models/checkpoints"):
            (base / name).mkdir(parents=True)
        (base / "custom_nodes" / "onrw_pack").symlink_to(PACK)
        shutil.copy(root / "input" / "example.png", base / "input")
        print("| model | memory | four stages | report | KSampler before and after | |\n|-|-|-|-|-|-|")
        if arguments.toy:
            (base / "custom_nodes" / "tiny_models").symlink_to(HERE / "tiny_models")
            tiny.write_models(base / "models", tiny_models.TinyClip)
            print("| toy | CPU | " + " | ".join(trial(root, base, "tiny.safetensors", 128, ("--cpu",))) + " |")
            return
        total = torch.cuda.get_device_properties(0).total_memory
        for name, side in (("SD15", 512), ("SDXL", 1024)):
            size = write_checkpoint(base / "models" / "checkpoints", name)
            reserved = ("--reserve-vram", f"{(total - SHARE * size) / 2**30:.2f}")
            for memory, device in (("all", ENOUGH), (f"{SHARE * size / 2**30:.1f} GiB", reserved)):
                row = " | ".join(trial(root, base, f"{name}.safetensors", side, device))
                print(f"| {name} | {memory} | {row} |", flush=True)


if __name__ == "__main__":
    main()
