"""ComfyUI's page in a headless Chromium: the workflows load without complaint, and run from there."""

import importlib.util
import json
import os
import urllib.error
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
WORKFLOWS = sorted((ROOT / "workflows").glob("*.json"))
CHECKPOINT = "CheckpointLoaderSimple"
PROBLEMS = """
(() => ({
  unknown: app.graph._nodes.filter(n => n.constructor.name === "UnknownNode" || !n.comfyClass && !n.isVirtualNode)
    .map(n => n.type),
  flagged: app.graph._nodes.filter(n => n.has_errors).map(n => n.type),
  dialogs: [...document.querySelectorAll(".p-dialog")].map(d => d.innerText),
}))()
"""
CLOSE = """
(async () => {
  document.querySelectorAll(".p-dialog").forEach(d => d.querySelector("button").click());
  while (document.querySelector(".p-dialog")) await new Promise(done => setTimeout(done, 100));
})()
"""


MARKUP = "<b>x</b>"
CARDS = """
() => [...document.querySelectorAll(".onrw-card")].map(card => ({
  state: card.dataset.state,
  title: card.querySelector(".onrw-title").lastChild.textContent,
  lines: [...card.querySelectorAll(".onrw-line")].map(line => line.textContent),
  images: card.querySelectorAll("img").length,
  elements: card.querySelectorAll("b, script").length,
}))
"""
HELP = """
(async name => {
  app.graph.clear();
  const node = LiteGraph.createNode(name);
  node.pos = [600, 300];
  app.graph.add(node);
  app.canvas.ds.scale = 1;
  app.canvas.ds.offset = [0, 0];
  app.canvas.selectNode(node);
  app.canvas.setDirty(true, true);
  const until = async (found, tries = 600) => {
    for (; tries; tries--) {
      const value = found();
      if (value) return value;
      await new Promise(done => setTimeout(done, 50));
    }
  };
  const shown = () => {
    const page = document.querySelector(".node-help-content");
    const picture = page?.querySelector("img");
    return picture?.src.includes(`/${name}.jpg`) && picture.naturalWidth && page;
  };
  const button = await until(() => document.querySelector("[data-testid='info-button']"));
  // A page that is open follows the selection in later versions.
  let page = document.querySelector(".node-help-content") && await until(shown, 6);
  if (!page) {
    button.click();
    page = await until(shown);
  }
  return page && {title: page.querySelector("h1").innerText, rows: page.querySelectorAll("tr").length};
})
"""
BLUEPRINTS = """
(async ids => {
  const types = ids.map(id => `SubgraphBlueprint.${id}`);
  const store = document.querySelector("#vue-app").__vue_app__.config.globalProperties.$pinia._s.get("subgraph");
  const loaded = () => new Set(store.subgraphBlueprints.map(one => one.name));
  while (!types.every(type => loaded().has(type))) await new Promise(done => setTimeout(done, 100));
  app.graph.clear();
  const source = LiteGraph.createNode("LoadImage");
  app.graph.add(source);
  const [mark, verify] = types.map(type => {
    const {nodes, definitions} = store.getBlueprint(type);
    app.canvas._deserializeItems({nodes, subgraphs: definitions.subgraphs}, {position: [400, 0]});
    return app.graph._nodes.at(-1);
  });
  const shown = LiteGraph.createNode("PreviewAny");
  app.graph.add(shown);
  source.widgets[0].value = "onrw_monument.jpg";
  source.connect(0, mark, 0);
  mark.connect(0, verify, 0);
  verify.connect(0, shown, 0);
  const set = (name, value) => { mark.widgets.find(one => one.name === name).value = value; };
  set("text", "Ann 5");
  set("preset", "quick");
  return {
    widgets: mark.widgets.map(one => one.name),
    outputs: [mark, verify].map(one => one.outputs.map(output => output.label)),
    shown: String(shown.id),
  };
})
"""
SEARCH = """
words => {
  const store = document.querySelector("#vue-app").__vue_app__.config.globalProperties.$pinia._s.get("nodeDef");
  return store.nodeSearchService.searchNode(words).map(node => node.name);
}
"""


@pytest.fixture(scope="module")
def browser(server):
    spec = importlib.util.spec_from_file_location("onrw_browser", Path(__file__).parent / "browser.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    if module.executable() is None:
        pytest.skip("Chromium is not installed")
    server.post("/api/settings", {"Comfy.TutorialCompleted": True})
    page = module.Browser(server.url)
    yield page
    page.close()


UNSENT = {
    "PreviewAny": "preview",
    "LoadVideo": "video-preview",
    "SaveVideo": ("format", "codec"),
    "CreateVideo": ("bit_depth", "color_space"),
}
"""Class -> beginnings of inputs that are not compared: a text box for the result, and what later versions add."""


def without_meta(prompt):
    """Classes and inputs."""

    def compared(node):
        skipped = UNSENT.get(node["class_type"], ())
        return {name: value for name, value in node["inputs"].items() if not name.startswith(skipped)}

    return {key: (node["class_type"], compared(node)) for key, node in prompt.items()}


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_workflow_loads_and_says_what_its_api_file_says(browser, path):
    data = path.read_text(encoding="utf-8")
    browser.run(f"app.loadGraphData({data})")
    if folder := os.environ.get("ONRW_TEST_SCREENSHOTS"):
        browser.screenshot(Path(folder) / f"{path.stem}.png")
    found = browser.run(PROBLEMS)
    browser.run(CLOSE)
    # A checkpoint that is not there may be asked for, and nothing else.
    loaders = [node for node in json.loads(data)["nodes"] if node["type"] == CHECKPOINT]
    assert all(node["properties"]["models"][0]["name"] == node["widgets_values"][0] for node in loaders)
    assert found["unknown"] == [] and set(found["flagged"]) <= {node["type"] for node in loaders}, found
    assert loaders or not any("missing" in text.lower() for text in found["dialogs"]), found
    assert not any("node" in text.lower() for text in found["dialogs"]), found
    prompt = browser.run("(async () => (await app.graphToPrompt()).output)()")
    expected = json.loads((path.parent / "api" / path.name).read_text(encoding="utf-8"))
    assert without_meta(prompt) == without_meta(expected)


def test_verdict_and_views_are_drawn_on_the_nodes(browser, server):
    """Run from the page: cards as text alone, whatever a mark says, and the slider between before and after."""
    data = json.loads((ROOT / "workflows" / "Mark a photo.json").read_text(encoding="utf-8"))
    marking = next(node for node in data["nodes"] if node["type"] == "ONRW_Embed")
    values = marking["widgets_values"]
    assert values[0] == "Ann 5" and values[3:6] == ["fast", "none", 0]
    values[0], values[3], values[5] = MARKUP, "quick", 512
    browser.run(f"app.loadGraphData({json.dumps(data)})")
    run_page(browser, server)
    browser._wait(lambda: browser.run(f"({CARDS})().length") == 2, 30)
    embedded, seen = sorted(browser.run(f"({CARDS})()"), key=lambda card: card["images"], reverse=True)
    assert embedded["title"] == seen["title"] == MARKUP and embedded["state"] == seen["state"] == "found"
    assert seen["lines"][0].startswith("Only 1 in 10^")
    assert embedded["images"] == 3 and embedded["elements"] == 0
    at = "document.querySelector('.onrw-view img:nth-of-type(2)').style.clipPath"
    assert "50%" in browser.run(at)
    browser.run(
        "(() => { const slider = document.querySelector('.onrw-view input'); slider.value = 20;"
        " slider.dispatchEvent(new Event('input')); })()"
    )
    assert "80%" in browser.run(at)


@pytest.mark.parametrize("words", ["watermark", "invisible", "provenance", "copyright", "verify", "sign"])
def test_the_search_finds_the_nodes(browser, words):
    found = browser.run(f"({SEARCH})({json.dumps(words)})")
    assert any(name.startswith("ONRW_") for name in found[:20]), found[:20]


def test_help_pages_open_from_the_nodes(browser, server):
    ours = {name: node for name, node in server.get("/object_info").items() if name.startswith("ONRW_")}
    for name, node in ours.items():
        shown = browser.run(f"{HELP}({json.dumps(name)})")
        sockets = sum(map(len, node["input"].values())) + len(node["output"])
        assert shown and shown["title"] == node["display_name"] and shown["rows"] >= sockets, (name, shown)


def run_page(browser, server):
    """The history entry of the graph in the page, run to its end."""
    done = set(server.get("/history"))
    browser.run("app.queuePrompt(0, 1)")
    browser._wait(lambda: set(server.get("/history")) - done, 300)
    (number,) = set(server.get("/history")) - done
    entry = server.get("/history")[number]
    assert entry["status"]["status_str"] == "success"
    return entry


def test_blueprints_mark_and_verify(browser, server):
    names = [path.stem for path in sorted((ROOT / "subgraphs").glob("*.json"))]
    try:
        offered = server.get("/global_subgraphs")
    except urllib.error.HTTPError:
        pytest.skip("this ComfyUI has no subgraph blueprints")
    ours = {one["name"]: key for key, one in offered.items() if "onrw_pack" in one["info"]["node_pack"]}
    assert sorted(ours) == names
    made = browser.run(f"{BLUEPRINTS}({json.dumps([ours[name] for name in names])})")
    assert made["widgets"] == ["text", "strength", "preset"]
    assert made["outputs"] == [["marked", "read back"], ["text", "detected", "straight", "public label"]]
    assert run_page(browser, server)["outputs"][made["shown"]]["text"] == ["Ann 5"]


def test_every_node_appears_in_a_workflow(server):
    used = {node["type"] for path in WORKFLOWS for node in json.loads(path.read_text(encoding="utf-8"))["nodes"]}
    assert {name for name in server.get("/object_info") if name.startswith("ONRW_")} <= used
