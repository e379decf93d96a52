"""Make the subgraph blueprints in subgraphs/, with the frontend of a ComfyUI that has them (0.4 and later).

    python tests/comfy/draw_blueprints.py http://127.0.0.1:8188

The server has to run with this pack. ComfyUI offers the files in a pack's folder `subgraphs` as nodes under *Subgraph
Blueprints*.
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path

from browser import Browser

FOLDER = Path(__file__).parents[2] / "subgraphs"
CATEGORY = "ONRW"


@dataclass(frozen=True)
class Blueprint:
    """A subgraph with one input, the image.

    Attributes:
        name: As users read it; of the file as well.
        description: One sentence.
        nodes: Classes of its nodes, from left to right.
        links: (node, output, node, input): links between them; node -1 is the image.
        outputs: (node, output, name): outputs of the subgraph, in the order of the nodes.
        widgets: (node, widget): widgets that the subgraph shows.
    """

    name: str
    description: str
    nodes: tuple[str, ...]
    links: tuple[tuple[int, str, int, str], ...]
    outputs: tuple[tuple[int, str, str], ...]
    widgets: tuple[tuple[int, str], ...]


BLUEPRINTS = (
    Blueprint(
        "Mark Image Invisibly (ONRW)",
        "Embeds an invisible watermark in an image of any model, and reads it back.",
        ("ONRW_Embed", "ONRW_Read"),
        ((-1, "image", 0, "image"), (0, "marked", 1, "image"), (-1, "image", 1, "original")),
        ((0, "marked", "marked"), (1, "text", "read back")),
        ((0, "text"), (0, "strength"), (0, "preset")),
    ),
    Blueprint(
        "Verify Image (ONRW)",
        "Reads the invisible watermark of an image with the key of this installation, and the public label without it.",
        ("ONRW_Read", "ONRW_Detect"),
        ((-1, "image", 0, "image"), (-1, "image", 1, "image")),
        ((0, "text", "text"), (0, "detected", "detected"), (0, "straight", "straight"), (1, "label", "public label")),
        (),
    ),
)
MAKE = """
(async ({name, description, nodes, links, outputs, widgets}, category) => {
  app.graph.clear();
  const add = (kind, x, y) => {
    const node = LiteGraph.createNode(kind);
    node.pos = [x, y];
    app.graph.add(node);
    return node;
  };
  const source = add("LoadImage", -500, 0);
  const inner = nodes.map((kind, number) => add(kind, 420 * number, 0));
  const slot = (sockets, name) => sockets.findIndex(one => one.name === name);
  for (const [from, output, to, input] of links) {
    const origin = from < 0 ? source : inner[from];
    const number = from < 0 ? 0 : slot(origin.outputs, output);
    if (!origin.connect(number, inner[to], slot(inner[to].inputs, input))) throw Error(`${name}: ${output} ${input}`);
  }
  // An output of the subgraph is made for each link that leaves it.
  const sinks = outputs.map(([from, output]) => {
    const sink = add("Reroute", 1000, 0);
    inner[from].connect(slot(inner[from].outputs, output), sink, 0);
    return sink;
  });
  const {subgraph, node} = app.graph.convertToSubgraph(new Set(inner));
  subgraph.name = node.title = name;
  subgraph.description = description;
  subgraph.category = category;
  // The page shows some widgets of its own accord: only those that are asked for stay.
  subgraph.inputs.filter(one => one.type !== "IMAGE").forEach(one => subgraph.removeInput(one));
  subgraph.renameInput(subgraph.inputs[0], "image");
  subgraph.outputs.forEach((one, number) => subgraph.renameOutput(one, outputs[number][2]));
  for (const [number, widget] of widgets) {
    const owner = subgraph.getNodeById(inner[number].id);
    const input = owner.inputs[slot(owner.inputs, widget)];
    subgraph.addInput(widget, input.type).connect(input, owner);
  }
  [source, ...sinks].forEach(one => app.graph.remove(one));
  const data = app.graph.serialize();
  data.extra = {};
  data.nodes.forEach(one => one.inputs.forEach(input => { input.link = null; }));
  return data;
})
"""


def main(url: str) -> None:
    browser = Browser(url)
    FOLDER.mkdir(exist_ok=True)
    try:
        for blueprint in BLUEPRINTS:
            data = browser.run(f"{MAKE}({json.dumps(vars(blueprint))}, {json.dumps(CATEGORY)})")
            text = json.dumps(data, indent=1) + "\n"
            (FOLDER / f"{blueprint.name}.json").write_text(text, encoding="utf-8")
            print(blueprint.name)
    finally:
        browser.close()


if __name__ == "__main__":
    main(sys.argv[1])
