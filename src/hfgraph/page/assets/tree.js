"use strict";
// The model as its modules, repeated ones folded.

const FILTERS = [
  ["all", "All", () => true],
  ["done", "Rewritten", (row) => row.sites.some((s) => s.status !== "near miss")],
  ["near", "Nearly", (row) => row.sites.some((s) => s.status === "near miss")],
  ["traced", "As traced", (row) => isTraced(row) && row.children.length === 0],
];

function rowText(row, graph) {
  const nodes = graph.byModule[row.path] || [];
  return [fullName(row), row.class, ...row.sites.flatMap((s) => [s.rule, s.source, s.code, s.reason, s.note]), ...nodes.map((n) => n[COLUMN.label])].join("\n").toLowerCase();
}

// A path with a layer's number finds the row that the layer is folded into.
function matches(row, graph, query) {
  if (!query) return true;
  if (row.paths.some((p) => p.toLowerCase().includes(query))) return true;
  return rowText(row, graph).includes(query) || memberPaths(row).some((p) => p.toLowerCase().includes(query));
}

function memberPaths(row) {
  if (!row.parent) return row.paths;
  return memberPaths(row.parent).flatMap((above) => row.paths.map((p) => {
    const own = row.parent.path ? p.slice(row.parent.path.length + 1) : p;
    return above ? `${above}.${own}` : own;
  }));
}

function drawTree(state) {
  const graph = DATA.graphs[state.graph];
  const filter = FILTERS.find(([id]) => id === state.filter)[2];
  const query = state.query.trim().toLowerCase();
  const narrowed = query !== "" || state.filter !== "all";
  const shown = new Set();
  for (const row of rowsOf(graph.tree)) {
    if (filter(row) && matches(row, graph, query)) for (let r = row; r; r = r.parent) shown.add(r);
  }
  const list = [];
  const visit = (row, depth) => {
    if (!shown.has(row)) return;
    const open = narrowed || state.open.has(row.path);
    list.push(rowElement(row, depth, open, state, query));
    if (open) row.children.forEach((child) => visit(child, depth + 1));
  };
  visit(graph.tree, 0);
  replace(document.getElementById("tree"), list.length ? list : el("div", { class: "empty" }, "Nothing here matches. Clear the search, or choose “All”."));
}

function rowElement(row, depth, open, state, query) {
  const choose = () => select(row);
  const toggle = (event) => { event.stopPropagation(); state.open.has(row.path) ? state.open.delete(row.path) : state.open.add(row.path); drawTree(state); };
  const own = row.sites.filter((s) => s.status !== "near miss");
  const done = own.length ? own[own.length - 1].rule : row.total.done ? `${row.total.done} rewritten` : "";
  const tags = [done && el("span", { class: "tag done" }, done), row.total.near ? el("span", { class: "tag near" }, row.total.near > 1 ? `${row.total.near} nearly` : "nearly") : null];
  const fold = row.children.length
    ? el("button", { class: "fold", "aria-label": open ? "fold" : "unfold", "aria-expanded": String(open), onclick: toggle }, open ? "▾" : "▸")
    : el("span", { class: "fold" });
  const name = row.parent ? row.name : row.class || DATA.model;
  return el("div", { class: "row", style: `--depth:${depth}`, "aria-selected": String(state.row === row), tabindex: 0, role: "button", "data-path": row.path, onclick: choose,
                     onkeydown: (e) => { if (e.key === "Enter" && e.target === e.currentTarget) choose(); if (e.key === "ArrowRight" && !open || e.key === "ArrowLeft" && open) toggle(e); } },
    fold, el("span", { class: `dot ${mark(row)}` }), el("span", { class: "name", title: row.path || row.class }, marked(name, query)),
    row.paths.length > 1 && el("span", { class: "times" }, `×${row.paths.length}`),
    el("span", { class: "cls" }, row.parent ? marked(row.class, query) : ""), el("span", { class: "tags" }, tags));
}

function marked(text, query) {
  const at = query ? text.toLowerCase().indexOf(query) : -1;
  return at < 0 ? text : [text.slice(0, at), el("mark", {}, text.slice(at, at + query.length)), text.slice(at + query.length)];
}

function drawFilters(state) {
  const rows = rowsOf(DATA.graphs[state.graph].tree);
  replace(document.getElementById("filters"), FILTERS.map(([id, name, test]) => {
    const n = rows.filter(test).reduce((sum, row) => sum + times(row), 0);
    return el("button", { class: "chip", "aria-pressed": String(state.filter === id), "data-filter": id, onclick: () => { state.filter = id; drawFilters(state); drawTree(state); } },
      id === "all" ? name : `${name} ${n}`);
  }));
}
