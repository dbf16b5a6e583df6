"use strict";
// What is known of one row: what was done, what nearly was, its code, its graph before and after.

const STATUS = { recognised: "recognised as ", fused: "then fused into " };

function drawDetail(state) {
  const graph = DATA.graphs[state.graph], row = state.row;
  const found = sitesIn(row);
  const done = grouped(found.filter(({ site }) => site.status !== "near miss")), near = grouped(found.filter(({ site }) => site.status === "near miss"));
  const many = memberPaths(row).length;
  const head = [
    el("div", { class: "path" }, fullName(row) || row.class || DATA.model, many > 1 ? el("span", { class: "soft" }, `  ×${many}`) : null),
    el("p", { class: "soft" }, [row.class, many > 1 ? `${plural(many, "module")} that compute alike; shown is ${row.path}` : "", nodesText(row)].filter(Boolean).join(" · ")),
  ];
  const drawn = drawPair(state, graph, row, found);
  const parts = [head];
  if (near.length) parts.push(el("h3", {}, "Nearly rewritten, and why not"), near.map((g) => nearElement(g, row, drawn, graph)));
  if (done.length) parts.push(el("h3", {}, "Rewritten"), placesOf(done).map((p) => doneElement(p, row, drawn)));
  if (!near.length && !done.length) parts.push(el("h3", {}, "As traced"), el("p", {}, asTraced(graph, row)));
  replace(document.getElementById("detail"), parts, drawn.element);
  drawn.start();
  if (near.length && drawn.sides.after.at) drawn.show(near[0].site.node);
}

function nodesText(row) {
  const each = row.paths.length, { before, after } = row.total;
  return before || after ? `${arrow(before / each, after / each)} nodes${each > 1 ? " each" : ""}` : "";
}

function grouped(found) {
  const groups = new Map();
  for (const { site, row } of found) {
    const key = [site.rule, site.status, fullName(row), site.source, site.reason.replace(/_?\d+/g, ""), site.note].join("|");
    if (!groups.has(key)) groups.set(key, { site, row, count: 0 });
    groups.get(key).count += 1;
  }
  return [...groups.values()];
}

function relative(inner, row) {
  const own = fullName(inner), above = fullName(row);
  if (inner === row) return "";
  return above && own.startsWith(above + ".") ? own.slice(above.length + 1) : own;
}

function whereElement(g, row, drawn) {
  const inner = relative(g.row, row);
  const link = drawn.knows(g.site) ? el("button", { class: "linkish", onclick: () => drawn.show(g.site.node, g.site.nodes, true) }, "show in the graph") : null;
  return el("div", {}, inner && el("button", { class: "mono linkish", onclick: () => select(g.row) }, inner), inner && " ", place(g.site), " ", link);
}

// One place in the code: what it was recognised as, and what that was fused into.
function placesOf(groups) {
  const places = new Map();
  for (const g of groups) {
    const key = `${fullName(g.row)}|${g.site.source}|${g.site.note}`;
    if (!places.has(key)) places.set(key, []);
    places.get(key).push(g);
  }
  return [...places.values()];
}

function doneElement(place, row, drawn) {
  const [first] = place, last = place[place.length - 1];
  const what = place.map((g, i) => {
    const n = g.count * times(g.row, row);
    return [i ? " " : "", el("span", { class: "soft" }, i || g.site.status === "recognised" ? STATUS[g.site.status] : "fused into "), el("span", { class: "tag done" }, g.site.rule), n > 1 ? el("span", { class: "times" }, ` ×${n}`) : null];
  });
  return el("div", { class: "site" }, el("div", {}, what), whereElement({ row: first.row, site: last.site }, row, drawn), code(first.site),
    place.map((g) => (g.site.note ? el("div", { class: "why" }, g.site.note) : null)),
    first.site.steps.length > 1 ? el("div", { class: "soft mono" }, "by the rules " + first.site.steps.join(" → ")) : null);
}

function nearElement(g, row, drawn, graph) {
  const n = g.count * times(g.row, row);
  return el("div", { class: "site near" },
    el("div", {}, el("span", { class: "soft" }, "not "), el("span", { class: "tag near" }, g.site.rule), n > 1 ? el("span", { class: "times" }, ` ×${n}`) : null),
    el("div", { class: "why" }, sentence(g.site, graph)), whereElement(g, row, drawn), code(g.site));
}

// "rule: 4 of 5 nodes matched, then expected 2, found 3" -> a sentence that names the first differing node.
function sentence(site, graph) {
  const found = site.reason.match(/^[\w.]+: (\d+) of (\d+) nodes matched, then ([\s\S]*)$/);
  if (!found) return site.reason;
  const [, matched, of, why] = found;
  const node = graph.after.find((n) => n[COLUMN.name] === site.node) || graph.before.find((n) => n[COLUMN.name] === site.node);
  return [`${matched} of ${of} operators of the pattern are there; the first difference is at `, el("span", { class: "mono" }, node ? node[COLUMN.call] : site.node), ": ", el("b", {}, why), "."];
}

function asTraced(graph, row) {
  const counts = {};
  for (const n of graph.before) if (n[COLUMN.kind] === "call" && inside(n[COLUMN.module], row)) counts[n[COLUMN.label]] = (counts[n[COLUMN.label]] || 0) + 1;
  const listed = Object.entries(counts).sort((a, b) => b[1] - a[1]).map(([name, n]) => (n > 1 ? `${name} ×${n}` : name)).join(", ");
  if (graph.unrewritten) return `The whole graph was left as it was: ${graph.unrewritten}.`;
  return listed ? ["No rule came near this code, so it goes to Inductor as it was traced: ", el("span", { class: "mono" }, listed), "."] : "This module has no operators of its own in this graph.";
}

// --- before and after --------------------------------------------------------------------------------

function drawPair(state, graph, row, found) {
  const near = found.filter(({ site }) => site.status === "near miss").map(({ site }) => site);
  const fitted = new Set(near.flatMap((s) => s.nodes)), differs = new Set(near.map((s) => s.node));
  const made = graph.after.filter((n) => n[COLUMN.rules].length), taken = new Set(made.flatMap((n) => n[COLUMN.done]));
  const nearly = (name) => (differs.has(name) ? "differs" : fitted.has(name) ? "fitted" : "");
  const sides = {};
  const picked = el("div", { id: "picked" }, el("span", { class: "soft" }, "Click a node to see its call, its source line, and its counterpart on the other side."));
  const light = (names) => wrap.querySelectorAll(".node").forEach((g) => g.classList.toggle("lit", names.has(g.dataset.name)));
  const pick = (node) => {
    light(counterparts(node, made));
    replace(picked, el("div", {}, node[COLUMN.name], " = ", node[COLUMN.call]), el("div", { class: "soft" }, [node[COLUMN.value], node[COLUMN.source], price(node)].filter(Boolean).join(" · ")),
      node[COLUMN.code] && el("div", {}, node[COLUMN.code]), node[COLUMN.rules].length ? el("div", { class: "soft" }, "made by " + node[COLUMN.rules].join(" → ")) : null);
  };
  const wrap = el("div", { class: "drawings", "data-tab": state.tab });
  const classOf = { before: (n) => nearly(n[COLUMN.name]) || (taken.has(n[COLUMN.name]) ? "taken" : ""), after: (n) => (n[COLUMN.rules].length ? "made" : nearly(n[COLUMN.name])) };
  for (const side of ["before", "after"]) { sides[side] = drawing(side, graph[side], row, classOf[side], pick); wrap.append(sides[side].panel); }
  const start = () => Object.values(sides).forEach((s) => s.start && s.start());
  const tabs = el("div", { class: "tabs" }, ["before", "after"].map((side) => el("button", { class: "chip", "aria-pressed": String(state.tab === side),
    onclick: (e) => { state.tab = side; wrap.dataset.tab = side; tabs.querySelectorAll("button").forEach((b) => b.setAttribute("aria-pressed", String(b === e.currentTarget))); start(); } }, side)));
  const show = (name, others = [], scroll = false) => {
    light(new Set([name, ...others]));
    for (const side of Object.values(sides)) { const target = side.at && [name, ...others].map(side.at).find(Boolean); if (target) side.view.to(target); }
    if (scroll) wrap.scrollIntoView({ block: "nearest", behavior: "smooth" });
  };
  const knows = (site) => [site.node, ...site.nodes].some((name) => Object.values(sides).some((s) => s.at && s.at(name)));
  const element = graph.before.length ? el("div", {}, el("h3", {}, "Its graph"), tabs, wrap, legend(near.length > 0), picked) : null;
  return { element, sides, start, show, knows };
}

function counterparts(node, made) {
  const name = node[COLUMN.name];
  const ops = made.filter((n) => n[COLUMN.name] === name || n[COLUMN.done].includes(name));
  return new Set([name, ...ops.flatMap((n) => [n[COLUMN.name], ...n[COLUMN.done]])]);
}

const price = (n) => (n[COLUMN.bytes] ? `${flops(n[COLUMN.flops])} flops, ${bytes(n[COLUMN.bytes])}` : "");

function legend(near) {
  const item = (cls, text) => el("span", {}, el("i", { class: cls }), text);
  return el("div", { class: "legend" }, item("taken", "replaced"), item("made", "made by a rule"), near && item("fitted", "fitted a rule"), near && item("differs", "differs first"), item("", "as traced"));
}
