"""Make the example workflows' UI files from their API files, with ComfyUI's own frontend.

    python tests/comfy/convert_workflows.py http://127.0.0.1:8188 [screenshots folder]

The server has to run with this pack. API files are the source: `_meta` of each node gives its title and its group,
that of the first node a note. Groups become columns, from left to right.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from urllib.request import Request, urlopen

from browser import Browser

WORKFLOWS = Path(__file__).parents[2] / "workflows"
LAYOUT = """
(async (api, name, extra) => {
  const gap = 40, title = 30, head = 60, tallest = 900;
  const fixed = {
    PreviewImage: [300, 300], SaveImage: [300, 330], LoadImage: [300, 340], PreviewAny: [300, 150],
    CLIPTextEncode: [300, 120], ONRW_EncodePrompt: [300, 160], ONRW_Extract: [300, 210],
    ONRW_RobustnessReport: [300, 210], ONRW_Message: [300, 190],
  };
  app.graph.clear();
  await app.loadApiJson(api, name);
  const graph = app.graph;
  const meta = {};
  for (const [id, node] of Object.entries(api)) meta[id] = node._meta;
  for (const one of extra) {
    const node = LiteGraph.createNode(one.type);
    graph.add(node);
    node.mode = 2;
    one.values.forEach((value, index) => { node.widgets[index].value = value; });
    meta[String(node.id)] = one;
  }
  const groups = [...new Set(Object.values(meta).map(m => m.group))];
  const note = LiteGraph.createNode("MarkdownNote");
  note.title = "About this workflow";
  note.widgets[0].value = api[Object.keys(api)[0]]._meta.note;
  graph.add(note);
  note.pos = [0, 0];
  note.size = [620, 150];
  let x = 0;
  const top = 260;
  for (const name of groups) {
    const nodes = graph._nodes.filter(n => meta[String(n.id)]?.group === name);
    const inside = new Set(nodes.map(n => n.id));
    const depth = {};
    const level = node => depth[node.id] ??= 1 + Math.max(-1, ...(node.inputs ?? [])
      .filter(i => i.link != null).map(i => graph.links[i.link].origin_id)
      .filter(id => inside.has(id)).map(id => level(graph.getNodeById(id))));
    nodes.forEach(level);
    // Pictures and texts stand under the node that makes them, not in a column of their own.
    const leaves = new Set(["PreviewImage", "SaveImage", "PreviewAny", "ONRW_SaveInversion", "MaskToImage"]);
    for (const node of nodes) {
      if (!leaves.has(node.type)) continue;
      const source = node.inputs.find(i => i.link != null);
      const origin = source && graph.links[source.link].origin_id;
      if (inside.has(origin) && !leaves.has(graph.getNodeById(origin).type)) depth[node.id] = depth[origin];
    }
    for (const node of nodes) {
      const source = node.type === "PreviewImage" && node.inputs[0].link != null
        && graph.getNodeById(graph.links[node.inputs[0].link].origin_id);
      if (source && source.type === "MaskToImage") depth[node.id] = depth[source.id];
    }
    const columns = Math.max(...Object.values(depth)) + 1;
    const bounds = [x, top, 0, 0];
    let left = x + gap / 2, bottom = top;
    for (let column = 0; column < columns; column++) {
      const here = nodes.filter(n => depth[n.id] === column);
      if (!here.length) continue;
      let y = top + head + title, width = 0;
      for (const node of here) {
        node.title = meta[String(node.id)].title;
        const size = node.computeSize();
        const wanted = fixed[node.type] ?? [300, 0];
        node.setSize([Math.max(wanted[0], size[0]), Math.max(wanted[1], size[1])]);
        width = Math.max(width, node.size[0]);
      }
      for (const node of here) {
        node.setSize([width, node.size[1]]);
        if (y + node.size[1] > top + tallest) {
          left += width + gap;
          y = top + head + title;
        }
        node.pos = [left, y];
        y += node.size[1] + title + gap / 2;
        bottom = Math.max(bottom, y);
      }
      left += width + gap;
    }
    bounds[2] = left - x - gap / 2;
    bounds[3] = bottom - top;
    const group = new LiteGraph.LGraphGroup(name);
    group.pos = [bounds[0], bounds[1]];
    group.size = [bounds[2], bounds[3]];
    graph.add(group);
    x = left + gap / 2;
  }
  for (const node of graph._nodes) {
    for (const widget of node.widgets ?? []) if (widget.name === "control_after_generate") widget.value = "fixed";
  }
  graph.setDirtyCanvas(true, true);
  const data = graph.serialize();
  data.extra = {};
  for (const node of data.nodes) {
    for (const key of ["cnr_id", "aux_id", "ver"]) delete node.properties[key];
  }
  return data;
})
"""
FIT = """
(async () => {
  const nodes = app.graph._nodes, canvas = app.canvas;
  const left = Math.min(...nodes.map(n => n.pos[0])) - 60, top = Math.min(...nodes.map(n => n.pos[1])) - 80;
  const right = Math.max(...nodes.map(n => n.pos[0] + n.size[0])) + 60;
  const bottom = Math.max(...nodes.map(n => n.pos[1] + n.size[1])) + 60;
  const width = canvas.canvas.width, height = canvas.canvas.height - 60;
  canvas.ds.scale = Math.min(width / (right - left), height / (bottom - top), 1);
  canvas.ds.offset = [-left, -top + 60 / canvas.ds.scale];
  canvas.draw(true, true);
  await new Promise(done => setTimeout(done, 1500));
})()
"""
MUTED = {
    "3_sampler_graph": [
        {
            "type": "ONRW_LoadInversion",
            "title": "A saved inversion (unmute)",
            "group": "Invert and optimise",
            "values": ["onrw/inversion_00001_.safetensors [output]"],
        }
    ]
}


def main(url: str, pictures: Path | None) -> None:
    settings = {"Comfy.TutorialCompleted": True, "Comfy.Workflow.ShowMissingModelsWarning": False}
    urlopen(Request(f"{url}/api/settings", json.dumps(settings).encode(), {"Content-Type": "application/json"}))
    browser = Browser(url)
    try:
        for path in sorted((WORKFLOWS / "api").glob("*.json")):
            api = json.loads(path.read_text(encoding="utf-8"))
            extra = MUTED.get(path.stem, [])
            data = browser.run(f"{LAYOUT}({json.dumps(api)}, {json.dumps(path.stem)}, {json.dumps(extra)})")
            (WORKFLOWS / path.name).write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")
            if pictures is not None:
                browser.call(
                    "Emulation.setDeviceMetricsOverride", width=3400, height=1500, deviceScaleFactor=1, mobile=False
                )
                browser.run(f"(async () => {{ await app.loadGraphData({json.dumps(data)}); }})()")
                browser.run(FIT)
                browser.screenshot(pictures / f"{path.stem}.png")
    finally:
        browser.close()


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]) if len(sys.argv) > 2 else None)
