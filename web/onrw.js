// What ONRW's nodes show of each image: a card with the verdict, and a view before and after with a slider.
//
// The server sends cards (nodes/card.py). Their texts come from images that anybody may have made, so they are set as
// text and never as markup.

import { app } from "../../scripts/app.js";
import { api } from "../../scripts/api.js";

const NODES = new Set(["ONRW_SaveImage", "ONRW_Embed", "ONRW_Read", "ONRW_Detect"]);
const COLOURS = { found: "#3f9c5f", nothing: "#7a7f87", warning: "#c9822b" };
const SIGNS = { found: "\u2713", nothing: "\u2205", warning: "!" };
// Sizes in the units of the graph.
const VIEW_HEIGHT = 200;
const LEAST = 60;
const WITH_VIEWS = 420;
const ALONE = 300;
const TALLEST = 640;
const MARGIN = 15;

const STYLE = `
.onrw-box { height: 100%; overflow-y: auto; }
.onrw-cards { display: flex; flex-direction: column; gap: 6px; font: 13px/1.35 system-ui, sans-serif; color: #e8e8e8; }
.onrw-card { background: #23262b; border-left: 5px solid var(--onrw-colour); border-radius: 6px; padding: 7px 10px; }
.onrw-title { font-size: 17px; font-weight: 600; overflow-wrap: anywhere; }
.onrw-title span { color: var(--onrw-colour); margin-right: 7px; }
.onrw-line { color: #c3c7cd; overflow-wrap: anywhere; }
.onrw-views { display: flex; gap: 6px; margin-top: 6px; }
.onrw-view { position: relative; flex: 1 1 0; min-width: 0; height: ${VIEW_HEIGHT}px; background: #111;
  border-radius: 4px; overflow: hidden; }
.onrw-view img { position: absolute; inset: 0; width: 100%; height: 100%; object-fit: contain; pointer-events: none; }
.onrw-view input { position: absolute; inset: 0; width: 100%; height: 100%; margin: 0; opacity: 0;
  cursor: ew-resize; }
.onrw-divider { position: absolute; top: 0; bottom: 0; width: 2px; background: #fff; pointer-events: none; }
.onrw-label { position: absolute; top: 4px; padding: 0 5px; border-radius: 3px; background: #000a; color: #fff;
  font-size: 11px; pointer-events: none; }
`;

function element(tag, name, text) {
  const made = document.createElement(tag);
  made.className = name;
  if (text !== undefined) made.textContent = text;
  return made;
}

function picture({ filename, subfolder, type }) {
  const image = element("img", "");
  image.draggable = false;
  image.src = api.apiURL(`/view?${new URLSearchParams({ filename, subfolder, type })}`);
  return image;
}

function label(text, side) {
  const made = element("div", "onrw-label", text);
  made.style[side] = "4px";
  return made;
}

// The images one over the other; the slider says up to where the upper one, before, is seen.
function comparison(before, after) {
  const view = element("div", "onrw-view");
  const upper = picture(before);
  const divider = element("div", "onrw-divider");
  const slider = element("input", "");
  slider.type = "range";
  slider.min = 0;
  slider.max = 100;
  slider.step = "any";
  slider.value = 50;
  slider.setAttribute("aria-label", "before and after");
  const move = () => {
    upper.style.clipPath = `inset(0 ${100 - slider.value}% 0 0)`;
    divider.style.left = `${slider.value}%`;
  };
  slider.addEventListener("input", move);
  // The graph behind the node is not to be moved by a drag on the slider.
  slider.addEventListener("pointerdown", (event) => event.stopPropagation());
  slider.addEventListener("pointermove", (event) => {
    if (event.buttons) return;
    const box = slider.getBoundingClientRect();
    slider.value = (100 * (event.clientX - box.left)) / box.width;
    move();
  });
  move();
  view.append(picture(after), upper, divider, label("before", "left"), label("after", "right"), slider);
  return view;
}

function card(data) {
  const made = element("div", "onrw-card");
  const state = data.state in COLOURS ? data.state : "nothing";
  made.dataset.state = state;
  made.style.setProperty("--onrw-colour", COLOURS[state]);
  const title = element("div", "onrw-title");
  title.append(element("span", "", SIGNS[state]), document.createTextNode(data.title));
  made.append(title, ...data.lines.map((line) => element("div", "onrw-line", line)));
  if (data.before) {
    const views = element("div", "onrw-views");
    const difference = element("div", "onrw-view");
    difference.append(picture(data.difference), label("change x 10", "left"));
    views.append(comparison(data.before, data.after), difference);
    made.append(views);
  }
  return made;
}

// The preview of images that ComfyUI draws in a node; [] if there is none.
function takePreview(node) {
  const index = node.widgets?.findIndex((widget) => widget.name === "$$canvas-image-preview") ?? -1;
  return index < 0 ? [] : node.widgets.splice(index, 1);
}

// The image of the last iteration makes room for the card.
function removeProgressImage(node) {
  delete app.nodePreviewImages?.[node.id];
  node.imgs = undefined;
  takePreview(node);
}

// The cards, as a widget of the node that is as tall as they are.
function cardsOf(node) {
  const box = element("div", "onrw-box");
  const cards = element("div", "onrw-cards");
  box.append(element("style", "", STYLE), cards);
  let height = LEAST;
  const widget = node.addDOMWidget("onrw", "onrw", box, {
    serialize: false,
    getMinHeight: () => height,
    getMaxHeight: () => height,
  });
  widget.serialize = false;
  new ResizeObserver(() => {
    if (!cards.offsetHeight) return; // out of sight
    height = Math.min(cards.offsetHeight + 2 * MARGIN, TALLEST);
    fit(node, node.size[0]);
  }).observe(cards);
  return cards;
}

function fit(node, width) {
  node.setSize([width, Math.max(node.size[1], node.computeSize()[1])]);
  app.graph.setDirtyCanvas(true, true);
}

function show(node, output) {
  if (!output.images) removeProgressImage(node);
  node.onrw ??= cardsOf(node);
  // A node that saves images goes on showing them; they fill what is left of the node, so they come last.
  node.widgets.push(...takePreview(node));
  node.onrw.replaceChildren(...output.onrw.map(card));
  fit(node, Math.max(node.size[0], output.onrw.some((one) => one.before) ? WITH_VIEWS : ALONE));
}

app.registerExtension({
  name: "onrwinvisiblewatermarks.cards", // under DisplayName of pyproject.toml, in the form that comfy-test wants
  beforeRegisterNodeDef(nodeType, nodeData) {
    if (!NODES.has(nodeData.name)) return;
    const executed = nodeType.prototype.onExecuted;
    nodeType.prototype.onExecuted = function (output) {
      executed?.apply(this, arguments);
      if (output?.onrw) show(this, output);
    };
  },
});
