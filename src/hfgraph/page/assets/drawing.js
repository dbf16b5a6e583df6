"use strict";
// One module's graph, laid out by dagre and drawn as SVG; drag to move, pinch or Ctrl + wheel to zoom.

const SVG = "http://www.w3.org/2000/svg";
const CHARACTER = 7.6, LINE = 16, MOST_NODES = 500;

function svg(tag, attributes = {}, ...children) {
  const node = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  node.append(...children);
  return node;
}

// The nodes of a row, and those outside that it reads. Weights stay out: they are in the call of their operator. So does
// `getitem`, which only names one of several results.
function partOf(nodes, row) {
  const byName = new Map(nodes.map((n) => [n[COLUMN.name], n]));
  const source = (name) => { let n = byName.get(name); while (n && isItem(n) && byName.has(n[COLUMN.inputs][0])) n = byName.get(n[COLUMN.inputs][0]); return n; };
  const own = nodes.filter((n) => n[COLUMN.kind] === "call" && inside(n[COLUMN.module], row));
  const names = new Set(own.map((n) => n[COLUMN.name]));
  const read = new Map(own.map((n) => [n[COLUMN.name], [...new Set(n[COLUMN.inputs].map(source).filter((m) => m && !isWeight(m)))]]));
  const outside = [...new Set([...read.values()].flat())].filter((n) => !names.has(n[COLUMN.name]));
  return { own, outside, read };
}

const isItem = (n) => n[COLUMN.kind] === "item";
const isWeight = (n) => n[COLUMN.kind] === "constant" || (n[COLUMN.kind] === "input" && n[COLUMN.label].includes("."));

function laidOut(part) {
  const g = new dagre.graphlib.Graph();
  g.setGraph({ rankdir: "TB", nodesep: 16, ranksep: 26, marginx: 14, marginy: 14 });
  g.setDefaultEdgeLabel(() => ({}));
  for (const n of [...part.outside, ...part.own]) {
    const label = short(n[COLUMN.label]), value = short(n[COLUMN.value]);
    g.setNode(n[COLUMN.name], { node: n, label, value, width: Math.max(label.length * CHARACTER, value.length * CHARACTER * 0.84) + 20, height: value ? 2 * LINE + 8 : LINE + 10 });
  }
  for (const [name, inputs] of part.read) for (const n of inputs) g.setEdge(n[COLUMN.name], name);
  dagre.layout(g);
  return g;
}

const short = (text) => (text.length > 34 ? text.slice(0, 33) + "…" : text);

function nodeElement(info, classes, onpick) {
  const { x, y, width, height, label, value, node } = info;
  const group = svg("g", { class: `node ${classes}`, transform: `translate(${x - width / 2},${y - height / 2})`, "data-name": node[COLUMN.name] });
  const middle = width / 2;
  const title = svg("title");
  title.textContent = node[COLUMN.call];
  const text = svg("text", { x: middle, y: value ? 16 : height / 2 + 4, "text-anchor": "middle" });
  text.textContent = label;
  group.append(title, svg("rect", { width, height, rx: 5 }), text);
  if (value) {
    const below = svg("text", { class: "value", x: middle, y: 31, "text-anchor": "middle" });
    below.textContent = value;
    group.append(below);
  }
  group.addEventListener("click", () => onpick(node));
  return group;
}

function edgeElement(points) {
  const [first, ...rest] = points;
  let d = `M${first.x},${first.y}`;
  for (let i = 0; i < rest.length - 1; i++) {
    const half = { x: (rest[i].x + rest[i + 1].x) / 2, y: (rest[i].y + rest[i + 1].y) / 2 };
    d += ` Q${rest[i].x},${rest[i].y} ${half.x},${half.y}`;
  }
  const last = rest[rest.length - 1];
  return [svg("path", { class: "edge", d: `${d} L${last.x},${last.y}` }), svg("path", { class: "tip", d: `M${last.x - 3.5},${last.y - 6}L${last.x},${last.y}L${last.x + 3.5},${last.y - 6}Z` })];
}

// A drawing: title, the picture, buttons. `classOf` says what a node is; `onpick` is called with a clicked one.
function drawing(side, nodes, row, classOf, onpick) {
  const part = partOf(nodes, row);
  const panel = el("div", { class: `drawing ${side}` });
  const title = el("div", { class: "bar" }, el("b", {}, side === "before" ? "Before" : "After"), el("span", { class: "soft" }, plural(part.own.length, "node")));
  panel.append(title);
  if (!part.own.length || part.own.length > MOST_NODES) {
    panel.append(el("div", { class: "empty" }, part.own.length ? "Too many nodes to draw well. Choose a module inside this one." : "No node of this module is left here."));
    return { panel };
  }
  const g = laidOut(part);
  const names = new Set(part.own.map((n) => n[COLUMN.name]));
  const content = svg("g");
  for (const e of g.edges()) content.append(...edgeElement(g.edge(e).points));
  for (const name of g.nodes()) content.append(nodeElement(g.node(name), names.has(name) ? classOf(g.node(name).node) : "outside", onpick));
  const picture = svg("svg", { role: "img", "aria-label": `${side}: graph of ${row.path || DATA.model}` }, content);
  const view = movable(picture, content, g.graph());
  const button = (sign, label, run) => el("button", { "aria-label": label, title: label, onclick: run }, sign);
  title.append(button("−", "zoom out", () => view.zoom(1 / 1.3)), button("+", "zoom in", () => view.zoom(1.3)), button("⤢", "show all", view.all));
  panel.append(picture);
  return { panel, view, at: (name) => g.hasNode(name) && g.node(name), start: view.start };
}

function movable(picture, content, size) {
  let k = 1, x = 0, y = 0;
  const held = new Map();
  const apply = () => content.setAttribute("transform", `translate(${x},${y}) scale(${k})`);
  const box = () => picture.getBoundingClientRect();
  const zoom = (factor, cx = box().width / 2, cy = box().height / 2) => {
    const next = Math.min(4, Math.max(0.05, k * factor));
    x = cx - ((cx - x) * next) / k; y = cy - ((cy - y) * next) / k; k = next; apply();
  };
  const all = () => { const b = box(); k = Math.min(b.width / size.width, b.height / size.height, 1); x = (b.width - k * size.width) / 2; y = Math.max(0, (b.height - k * size.height) / 2); apply(); };
  const to = (node) => { const b = box(); k = Math.max(k, 0.75); x = b.width / 2 - k * node.x; y = b.height / 2.6 - k * node.y; apply(); };
  // At first as wide as the panel, but never too small to read.
  const start = () => { const b = box(); k = Math.min(1, Math.max(0.62, b.width / size.width)); x = (b.width - k * size.width) / 2; y = 0; apply(); };
  picture.addEventListener("wheel", (e) => { if (!e.ctrlKey && !e.metaKey) return; e.preventDefault(); const b = box(); zoom(Math.exp(-e.deltaY / 300), e.clientX - b.left, e.clientY - b.top); }, { passive: false });
  picture.addEventListener("pointerdown", (e) => { held.set(e.pointerId, e); picture.classList.add("held"); });
  picture.addEventListener("pointermove", (e) => {
    const was = held.get(e.pointerId);
    if (!was) return;
    if (!picture.hasPointerCapture(e.pointerId) && Math.hypot(e.clientX - was.clientX, e.clientY - was.clientY) > 3) picture.setPointerCapture(e.pointerId);
    if (held.size === 2) {
      const other = [...held.values()].find((p) => p.pointerId !== e.pointerId), b = box();
      const before = Math.hypot(was.clientX - other.clientX, was.clientY - other.clientY), now = Math.hypot(e.clientX - other.clientX, e.clientY - other.clientY);
      if (before > 0) zoom(now / before, (e.clientX + other.clientX) / 2 - b.left, (e.clientY + other.clientY) / 2 - b.top);
    } else { x += e.clientX - was.clientX; y += e.clientY - was.clientY; apply(); }
    held.set(e.pointerId, e);
  });
  for (const name of ["pointerup", "pointercancel", "pointerleave"]) picture.addEventListener(name, (e) => { held.delete(e.pointerId); picture.classList.remove("held"); });
  return { zoom, all, to, start };
}
