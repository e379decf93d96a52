"""Takes the pictures of the nodes for their help pages, and of the graph with one node for the README.

    python docs/node_pictures.py [node id ...]

runs a ComfyUI with this pack (found as by tests/comfy/installation.py), opens its page in a headless Chromium, and lays
each node between the nodes that it is used with.
"""

from __future__ import annotations

import base64
import importlib.util
import io
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).parents[1]
PAGES = ROOT / "web" / "docs"
INSIDE = "ONRW_PICTURES"  # the folder of ComfyUI, in a process of its interpreter
WIDEST = 1000  # pixels

BEFORE = {
    "IMAGE": "LoadImage",
    "MODEL": "ONRW_LoadMini",
    "VAE": "ONRW_LoadMini",
    "CLIP": "ONRW_LoadMini",
    "CONDITIONING": "ONRW_EncodePrompt",
    "LATENT": "VAEEncode",
    "ONRW_KEY": "ONRW_Key",
    "ONRW_MESSAGE": "ONRW_Message",
    "ONRW_EXTRACTOR": "ONRW_LoadExtractor",
    "ONRW_INVERSION": "ONRW_NullTextInversion",
    "ONRW_WATERMARK": "ONRW_OptimizeNoise",
    "ONRW_WATERMARK,ONRW_INVERSION": "ONRW_OptimizeNoise",
}
AFTER = {
    "IMAGE": "PreviewImage",
    "STRING": "PreviewAny",
    "MODEL": "ONRW_NullTextInversion",
    "CONDITIONING": "ONRW_NullTextInversion",
    "GUIDER": "SamplerCustomAdvanced",
    "ONRW_KEY": "ONRW_Read",
    "ONRW_MESSAGE": "ONRW_Embed",
    "ONRW_EXTRACTOR": "ONRW_Read",
    "ONRW_INVERSION": "ONRW_OptimizeNoise",
    "ONRW_WATERMARK": "ONRW_ConstrainedDenoise",
}
ALONE = ("ONRW_SaveImage",)  # saves, so nothing follows

BUILD = """
(async () => {
  const [id, before, after, alone] = ARGUMENTS;
  app.graph.clear();
  app.nodeOutputs = {};  // previews of the nodes before, which had the same numbers
  const make = (type) => { const node = LiteGraph.createNode(type); app.graph.add(node); return node; };
  const place = (nodes, x) => {
    let y = 0;
    for (const node of nodes) {
      node.pos = [x, y];
      y += (node.flags.collapsed ? 0 : node.size[1]) + 70;
    }
  };
  const node = make(id);
  const sources = new Map(), sinks = [];
  node.inputs?.forEach((input, index) => {
    if (input.widget || input.shape === LiteGraph.GRID_SHAPE || input.shape === 7) return;  // 7: optional
    const type = before[input.type];
    if (!type || type === id) return;
    if (!sources.has(type)) sources.set(type, make(type));
    const from = sources.get(type);
    const slot = from.outputs.findIndex((output) => input.type.split(",").includes(output.type));
    if (slot >= 0) from.connect(slot, node, index);
  });
  const output = node.outputs?.findIndex((output) => after[output.type]) ?? -1;
  if (output >= 0 && !alone.includes(id)) {
    const to = make(after[node.outputs[output].type]);
    const kinds = node.outputs[output].type;
    const takes = (input) => input.type === "*" || input.type.split(",").includes(kinds);
    const slot = to.inputs.findIndex(takes);
    if (slot >= 0) node.connect(output, to, slot);
    sinks.push(to);
  }
  await new Promise((done) => setTimeout(done, 1500));  // previews and widgets
  const left = [...sources.values()];
  for (const each of [...left, node, ...sinks]) {
    each.setSize([Math.max(each.size[0], 8 * each.title.length + 60), each.size[1]]);  // room for the title
    if (each !== node && each.size[1] > 250 && each.type !== "LoadImage") each.collapse(true);
  }
  const width = Math.max(0, ...left.map((each) => each.size[0]));
  place(left, 0);
  place([node], left.length ? width + 110 : 0);
  place(sinks, node.pos[0] + node.size[0] + 110);
  const all = [...left, node, ...sinks];
  const right = Math.max(...all.map((each) => each.pos[0] + each.size[0]));
  const bottom = Math.max(...all.map((each) => each.pos[1] + (each.flags.collapsed ? 0 : each.size[1])));
  const scale = Math.min(1, 1600 / (right + 60), 700 / (bottom + 30));
  app.canvas.ds.scale = scale;
  app.canvas.ds.offset[0] = 150 / scale;
  app.canvas.ds.offset[1] = 170 / scale;
  app.canvas.deselectAll?.();
  app.canvas.setDirty(true, true);
  await new Promise((done) => setTimeout(done, 1200));
  const rect = app.canvas.canvas.getBoundingClientRect();
  return { x: rect.left + 150 - 20, y: rect.top + 170 - 30 * scale - 20,
    width: right * scale + 40, height: (bottom + 30) * scale + 40, scale: 1 };
})()
"""


def load(name: str) -> ModuleType:
    """A module of tests/comfy."""
    spec = importlib.util.spec_from_file_location(f"onrw_{name}", ROOT / "tests" / "comfy" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def main(names: list[str]) -> None:
    if INSIDE in os.environ:
        take(Path(os.environ[INSIDE]), names)
        return
    one = load("installation").installations()[-1]
    environment = {**one.environment, INSIDE: str(one.path)}
    subprocess.run([one.python, __file__, *names], env=environment, check=True)


def take(comfy: Path, names: list[str]) -> None:
    from PIL import Image

    names = names or sorted(path.stem for path in PAGES.glob("*.md"))
    with tempfile.TemporaryDirectory() as folder:
        base = Path(folder)
        (base / "custom_nodes").mkdir()
        (base / "input").mkdir()
        (base / "custom_nodes" / "onrw").symlink_to(ROOT)
        shutil.copy(ROOT / "onrw_core" / "samples" / "monument.jpg", base / "input" / "a_photo.jpg")
        server = load("server").Server(comfy, base)
        try:
            server.post("/api/settings", {"Comfy.TutorialCompleted": True, "Comfy.Minimap.Visible": False})
            page = load("browser").Browser(server.url)
            for name in names:
                clip = page.run(BUILD.replace("ARGUMENTS", json.dumps([name, BEFORE, AFTER, ALONE])))
                shot = page.call("Page.captureScreenshot", format="png", clip=clip)
                image = Image.open(io.BytesIO(base64.b64decode(shot["data"]))).convert("RGB")
                image.thumbnail((WIDEST, WIDEST))
                image.save(PAGES / f"{name}.jpg", quality=82)
                print(name, image.size, flush=True)
            page.close()
        finally:
            server.close()


if __name__ == "__main__":
    main(sys.argv[1:])
