"""Make the example workflows in workflows/ of their descriptions (templates.py), with ComfyUI's own frontend.

    python tests/comfy/draw_templates.py http://127.0.0.1:8188

The server has to run with this pack. workflows/api holds the prompts, workflows the files of the page: nodes stand in
columns, columns in groups, groups in rows. A link that would run behind a node is led by reroutes through a lane above
the groups of its row.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from urllib.request import Request, urlopen

from browser import Browser
from templates import TEMPLATES, Node, Template

WORKFLOWS = Path(__file__).parents[2] / "workflows"
LAYOUT = """
(async (api, name, rows, note) => {
  const gap = 41, between = 14, title = 30, head = 30, lane = 6, pad = 18, apart = 16, noted = 330;
  app.graph.clear();
  await app.loadApiJson(api, name);
  const graph = app.graph;
  const at = id => graph.getNodeById(id);
  for (const [id, one] of Object.entries(api)) {
    const node = at(id);
    node.title = one._meta.title ?? node.title;
  }
  for (const one of rows.flat().flatMap(group => group.columns).flat()) {
    if (!one.kind) continue;
    const node = LiteGraph.createNode(one.kind);
    node.id = Number(one.id);
    graph.add(node);
    node.mode = 2;
    node.title = one.title;
    one.values.forEach((value, index) => { node.widgets[index].value = value; });
  }
  const size = (node, wide, high) => {
    for (let i = 0; i < 2; i++) {
      const least = node.computeSize();
      node.setSize([Math.max(wide, Math.min(least[0], 340)), Math.max(high, least[1])]);
    }
  };
  const boxes = [];
  const place = (node, x, y) => { node.pos = [x, y]; boxes.push(node); };

  // The lanes above the groups of each row, each with the spans of x that it is used in: links of one output share a
  // span, and spans that do not meet share a lane. They are known after a first pass.
  let lanes = rows.map(() => []);
  const numbers = {};
  const lay = () => {
    boxes.length = 0;
    graph._groups.slice().forEach(group => graph.remove(group));
    const words = graph._nodes.find(node => node.type === "MarkdownNote");
    let top = 0, widest = 0;
    const starts = [];
    rows.forEach((groups, row) => {
      let x = row === 0 ? noted + gap : 0;
      starts.push(top);
      top += lane * lanes[row].length + (row || lanes[row].length ? apart : 0);
      let lowest = top + head;
      const made = [];
      for (const group of groups) {
        const left = x;
        x += pad;
        for (const column of group.columns) {
          let y = top + head + title, wide = 0;
          for (const one of column) {
            size(at(one.id), one.width, one.height);
            wide = Math.max(wide, at(one.id).size[0]);
          }
          for (const one of column) {
            const node = at(one.id);
            node.setSize([wide, node.size[1]]);
            place(node, x, y);
            y += node.size[1] + title + between;
          }
          lowest = Math.max(lowest, y - title - between);
          x += wide + gap;
        }
        x += pad - gap;
        made.push([group, left, x - left]);
        x += gap;
      }
      widest = Math.max(widest, x - gap);
      for (const [group, left, wide] of made) {
        const box = new LiteGraph.LGraphGroup(group.title);
        box.color = group.colour;
        box.font_size = 24;
        box.pos = [left, top];
        box.size = [wide, lowest - top + pad / 2];
        graph.add(box);
      }
      if (row === 0) { words.pos = [0, top + title]; words.setSize([noted, lowest - top - title + pad / 2]); }
      top = lowest + pad / 2;
    });
    return starts;
  };
  const words = LiteGraph.createNode("MarkdownNote");
  words.title = name;
  words.color = "#2e3a46";
  words.bgcolor = "#26303a";
  graph.add(words);
  words.widgets[0].value = note;  // later versions take the text of the graph before for a node that is not yet added
  const rowOf = {};
  rows.forEach((groups, row) => {
    for (const one of groups.flatMap(group => group.columns).flat()) rowOf[one.id] = row;
  });

  const ends = link => {
    const from = at(link.origin_id), to = at(link.target_id);
    const out = from.getConnectionPos(false, link.origin_slot);
    const into = to.getConnectionPos(true, link.target_slot);
    return [[from.pos[0] + from.size[0], out[1]], [to.pos[0], into[1]]];
  };
  const crosses = points => {
    for (let i = 0; i + 1 < points.length; i++)
      for (let t = 0; t <= 1; t += 1 / 128) {
        const x = points[i][0] + t * (points[i + 1][0] - points[i][0]);
        const y = points[i][1] + t * (points[i + 1][1] - points[i][1]);
        for (const node of boxes) {
          if (x > node.pos[0] + 2 && x < node.pos[0] + node.size[0] - 2
            && y > node.pos[1] - title && y < node.pos[1] + node.size[1] + 4) return true;
        }
      }
    return false;
  };
  const links = () => [...(graph._links?.values?.() ?? Object.values(graph.links))];
  const away = link => {
    const [a, b] = ends(link);
    return rowOf[link.origin_id] !== rowOf[link.target_id] || b[0] < a[0] + 20 || crosses([a, b]);
  };
  const spanOf = link => `${rowOf[link.target_id]} ${link.origin_id}.${link.origin_slot}`;
  const assign = () => {
    const spans = {};
    for (const link of links()) {
      if (!away(link)) continue;
      const [a, b] = ends(link), [from, to] = spans[spanOf(link)] ?? [Infinity, -Infinity];
      spans[spanOf(link)] = [Math.min(from, a[0], b[0] - gap), Math.max(to, a[0] + gap, b[0])];
    }
    lanes = rows.map(() => []);
    for (const [key, [from, to]] of Object.entries(spans)) {
      const row = lanes[key.split(" ")[0]];
      let number = row.findIndex(lane => lane.every(other => to < other[0] || other[1] < from));
      if (number < 0) number = row.push([]) - 1;
      row[number].push([from, to]);
      numbers[key] = number;
    }
  };
  lay();
  for (let pass = 0; pass < 2; pass++) {
    assign();
    lay();
  }
  const starts = lay();
  const last = {};
  for (const link of links()) {
    if (!away(link)) continue;
    const key = spanOf(link), number = numbers[key];
    const [a, b] = ends(link);
    const y = starts[rowOf[link.target_id]] + apart / 2 + lane * (number + 0.5);
    // The first and last bend are near the sockets, where the curve is short and does not swing out.
    const left = a[0] + 14 + 4 * (number % 6), right = b[0] - 14 - 4 * (number % 6);
    const points = [
      [left, a[1] + 16 * Math.sign(y - a[1])], [left, y], [right, y], [right, b[1] + 16 * Math.sign(y - b[1])],
    ];
    let parent;
    points.forEach((pos, index) => {
      const name = index < 2 && `${key} ${index}`;
      const made = last[name]
        ?? graph.setReroute({ id: ++graph.state.lastRerouteId, parentId: parent, pos, linkIds: [] });
      made.linkIds.add(link.id);
      if (name) last[name] = made;
      parent = made.id;
    });
    link.parentId = parent;
  }
  for (const node of graph._nodes)
    for (const widget of node.widgets ?? []) if (widget.name === "control_after_generate") widget.value = "fixed";
  graph.setDirtyCanvas(true, true);
  const data = graph.serialize();
  const kept = ["reroutes", "linkExtensions"];
  data.extra = Object.fromEntries(Object.entries(data.extra ?? {}).filter(([key]) => kept.includes(key)));
  for (const node of data.nodes) {
    for (const key of ["cnr_id", "aux_id", "ver"]) delete node.properties[key];
  }
  return data;
})
"""
HUGGINGFACE = "https://huggingface.co/"
MODELS = {
    "v1-5-pruned-emaonly-fp16.safetensors": "Comfy-Org/stable-diffusion-v1-5-archive",
    "sd_xl_base_1.0.safetensors": "stabilityai/stable-diffusion-xl-base-1.0",
    "flux1-schnell-fp8.safetensors": "Comfy-Org/flux1-schnell",
}
"""Checkpoint -> repository from which the page offers to download it."""


def enlarged(note: str) -> str:
    """A note whose text can be read at fit: the page draws paragraphs at 10 px, and these headings at 20 and 15 px."""
    blocks = note.split("\n\n")
    lines = [line for block in blocks for line in block.split("\n") if line]
    return "\n\n".join(line.removeprefix("#") if line.startswith("##") else f"## {line}" for line in lines)


def numbered(template: Template) -> tuple[dict, list]:
    """The prompt of a template, and its rows of groups of columns of node ids."""
    nodes = [node for row in template.rows for group in row for column in group.columns for node in column]
    ids = {node.name: str(number) for number, node in enumerate(nodes, 1)}

    def value(given):
        if not (isinstance(given, str) and given.startswith("@")):
            return given
        name, _, output = given[1:].partition(".")
        return [ids[name], int(output or 0)]

    def placed(node: Node) -> dict:
        muted = {"kind": node.kind, "title": node.title, "values": list(node.inputs.values())} if node.muted else {}
        return {"id": ids[node.name], "height": node.height, "width": node.width, **muted}

    prompt = {
        ids[node.name]: {
            "class_type": node.kind,
            "inputs": {name: value(given) for name, given in node.inputs.items()},
            "_meta": {"title": node.title},
        }
        for node in nodes
        if not node.muted
    }
    rows = [
        [
            {
                "title": group.title,
                "colour": group.colour,
                "columns": [[placed(node) for node in column] for column in group.columns],
            }
            for group in row
        ]
        for row in template.rows
    ]
    return prompt, rows


def main(url: str) -> None:
    settings = {"Comfy.TutorialCompleted": True, "Comfy.Workflow.ShowMissingModelsWarning": False}
    urlopen(Request(f"{url}/api/settings", json.dumps(settings).encode(), {"Content-Type": "application/json"}))
    browser = Browser(url)
    known = json.loads(urlopen(f"{url}/object_info").read())
    try:
        for template in TEMPLATES:
            prompt, rows = numbered(template)
            for node in prompt.values():
                node["_meta"]["title"] = node["_meta"]["title"] or known[node["class_type"]]["display_name"]
            arguments = ", ".join(map(json.dumps, (prompt, template.name, rows, enlarged(template.note))))
            data = browser.run(f"{LAYOUT}({arguments})")
            for node in data["nodes"]:
                if node["type"] == "CheckpointLoaderSimple":
                    (name,) = node["widgets_values"]
                    place = f"{HUGGINGFACE}{MODELS[name]}/resolve/main/{name}"
                    node["properties"]["models"] = [{"name": name, "url": place, "directory": "checkpoints"}]
            for path, content in ((WORKFLOWS / "api", prompt), (WORKFLOWS, data)):
                path.mkdir(exist_ok=True)
                text = json.dumps(content, indent=1) + "\n"
                (path / f"{template.name}.json").write_text(text, encoding="utf-8")
            print(template.name)
    finally:
        browser.close()


if __name__ == "__main__":
    main(sys.argv[1])
