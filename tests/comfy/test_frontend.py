"""ComfyUI's page in a headless Chromium: the workflows load without complaint, and run from there."""

import importlib.util
import json
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
WORKFLOWS = sorted((ROOT / "workflows").glob("*.json"))
PROBLEMS = """
(() => ({
  missing: app.graph._nodes.filter(n => n.has_errors || n.constructor.name === "UnknownNode" || !n.comfyClass
    && !n.isVirtualNode).map(n => n.type),
  dialogs: [...document.querySelectorAll(".p-dialog")].map(d => d.innerText),
}))()
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


def without_meta(prompt):
    """Classes and inputs; the page also sends the text box that PreviewAny shows its result in."""
    unsent = {"PreviewAny": {"preview"}}
    return {
        key: (
            node["class_type"],
            {k: v for k, v in node["inputs"].items() if k not in unsent.get(node["class_type"], ())},
        )
        for key, node in prompt.items()
    }


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_workflow_loads_and_says_what_its_api_file_says(browser, path):
    data = path.read_text(encoding="utf-8")
    browser.run(f"app.loadGraphData({data})")
    found = browser.run(PROBLEMS)
    assert found["missing"] == [] and not any("missing" in text.lower() for text in found["dialogs"]), found
    prompt = browser.run("(async () => (await app.graphToPrompt()).output)()")
    expected = json.loads((path.parent / "api" / path.name).read_text(encoding="utf-8"))
    assert without_meta(prompt) == without_meta(expected)
    assert path.with_suffix(".jpg").is_file()


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_layout_is_tidy(path):
    nodes = json.loads(path.read_text(encoding="utf-8"))["nodes"]
    boxes = [(*node["pos"], *node["size"], node["id"]) for node in nodes]
    for i, (x, y, w, h, one) in enumerate(boxes):
        for other_x, other_y, other_w, other_h, other in boxes[i + 1 :]:
            apart = x + w <= other_x or other_x + other_w <= x or y + h <= other_y or other_y + other_h <= y
            assert apart, (one, other)


def test_workflow_runs_from_the_page(browser, server):
    path = next(path for path in WORKFLOWS if path.stem.startswith("1_"))
    data = json.loads(path.read_text(encoding="utf-8"))
    marking = next(node for node in data["nodes"] if node["type"] == "ONRW_Watermark")
    values = marking["widgets_values"]
    assert values[:2] == ["fast", 20] and 512 in values
    values[1], values[values.index(512)] = 1, 128
    browser.run(f"app.loadGraphData({json.dumps(data)})")
    done = set(server.get("/history"))
    browser.run("app.queuePrompt(0, 1)")
    browser._wait(lambda: set(server.get("/history")) - done, 120)
    (number,) = set(server.get("/history")) - done
    assert server.get("/history")[number]["status"]["status_str"] == "success"


def test_every_node_appears_in_a_workflow(server):
    used = {node["type"] for path in WORKFLOWS for node in json.loads(path.read_text(encoding="utf-8"))["nodes"]}
    assert {name for name in server.get("/object_info") if name.startswith("ONRW_")} <= used
