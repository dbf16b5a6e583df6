"use strict";
// The page: what is chosen, and who draws it.

const state = { graph: 0, row: null, query: "", filter: "all", open: new Set(), tab: "after" };

function indexGraph(graph) {
  prepare(graph.tree);
  graph.byModule = {};
  for (const n of graph.before) (graph.byModule[n[COLUMN.module]] ||= []).push(n);
}

function select(row, scroll = false) {
  state.row = row;
  for (let r = row.parent; r; r = r.parent) state.open.add(r.path);
  history.replaceState(null, "", `#${state.graph}:${row.path}`);
  drawTree(state);
  drawDetail(state);
  const narrow = matchMedia("(max-width: 900px)").matches;
  if (scroll || narrow) document.getElementById("detail").scrollIntoView({ block: "start", behavior: "smooth" });
}

// What a reader wants to see first: something that nearly matched, else the layer that stands for most.
function firstRow(graph) {
  const rows = rowsOf(graph.tree);
  const layers = rows.filter((r) => r.paths.length > 1).sort((a, b) => b.total.before - a.total.before);
  return rows.find((r) => r.sites.some((s) => s.status === "near miss")) || layers[0] || graph.tree;
}

function chooseGraph(i, path = null) {
  const graph = DATA.graphs[i];
  Object.assign(state, { graph: i, open: new Set(rowsOf(graph.tree).filter((r) => r.paths.length === 1 && depth(r) < 2 && r.children.length).map((r) => r.path)) });
  const row = rowsOf(graph.tree).find((r) => r.path === path) || firstRow(graph);
  state.open.add(row.path);
  replace(document.getElementById("graphs"), DATA.graphs.length > 1 ? DATA.graphs.map((g, j) => el("button", { "aria-current": String(j === i), onclick: () => chooseGraph(j) }, `graph ${j}`, el("span", { class: "soft" }, ` ${plural(g.dynamo_nodes, "node")}${g.ended ? ", break" : ""}`))) : null);
  drawFilters(state);
  state.row = row;
  for (let r = row.parent; r; r = r.parent) state.open.add(r.path);
  drawTree(state); drawDetail(state); drawTables(state);
}

// The graph with the most to tell.
function mostTold() {
  const told = DATA.graphs.map((g) => g.tree.total.near * 1000 + g.tree.total.done * g.calls);
  return told.indexOf(Math.max(...told));
}

function depth(row) { return row.parent ? 1 + depth(row.parent) : 0; }

function drawHead() {
  const sum = (f) => DATA.graphs.reduce((n, g) => n + g.calls * f(g), 0);
  const done = sum((g) => g.tree.total.done), near = sum((g) => g.tree.total.near), broken = DATA.breaks.reduce((n, b) => n + b.count, 0);
  const moved = [sum((g) => g.captured.bytes), sum((g) => (g.passes.length ? g.passes[g.passes.length - 1].work.bytes : g.captured.bytes))];
  const nodes = [sum((g) => g.captured.nodes), sum((g) => (g.passes.length ? g.passes[g.passes.length - 1].work.nodes : g.captured.nodes))];
  const time = DATA.graphs.reduce((n, g) => n + g.seconds.capture + g.seconds.rewrite, 0);
  const theme = el("button", { class: "theme", onclick: toggleTheme }, "");
  replace(document.getElementById("top"),
    el("div", { class: "head" }, el("div", {}, el("div", { class: "soft" }, "hfgraph report"), el("h1", {}, DATA.model),
      el("div", { class: "soft" }, [DATA.made, ...Object.entries(DATA.versions).map(([name, v]) => `${name} ${v}`)].join(" · "))), theme),
    el("p", { class: "story" }, story(done, near, broken)),
    el("div", { class: "facts" }, fact(done, "places rewritten", done ? "done" : ""), fact(near, "nearly rewritten", near ? "near" : ""), fact(arrow(nodes[0], nodes[1]), "nodes"),
      fact(arrow(bytes(moved[0]), bytes(moved[1])), "moved, each operator on its own"), fact(DATA.graphs.length, DATA.graphs.length === 1 ? "graph" : "graphs"), fact(broken, broken === 1 ? "graph break" : "graph breaks", broken ? "break" : ""), fact(seconds(time), "to trace and rewrite")));
  labelTheme();
}

const fact = (value, name, cls = "") => el("div", { class: "fact" }, el("b", { class: cls }, String(value)), el("span", {}, name));

function story(done, near, broken) {
  const parts = Object.entries(DATA.counts).map(([rule, n], i, all) => [i ? (i === all.length - 1 ? " and " : ", ") : "", el("b", {}, `${rule} ×${n}`)]);
  const left = DATA.graphs.filter((g) => g.unrewritten).length;
  return [done ? ["In one call of this model hfgraph rewrote ", parts, ". "] : "hfgraph rewrote nothing in this model. ",
    near ? [el("a", { href: "#near" }, near === 1 ? "One place nearly matched" : `${near} places nearly matched`), ` and ${near === 1 ? "was" : "were"} left alone; the reason is given. `] : done ? "No other place came near a rule. " : "",
    left ? `${plural(left, "graph")} could not be rewritten at all. ` : "", broken ? [el("a", { href: "#breaks" }, plural(broken, "graph break")), " split the model. "] : "", "Everything else goes to Inductor as it was traced."];
}

// --- theme, search, start ----------------------------------------------------------------------------

const themeNow = () => document.documentElement.dataset.theme;
function setTheme(name) { document.documentElement.dataset.theme = name; }
function labelTheme() { document.querySelector(".theme").textContent = themeNow() === "dark" ? "☀ Light" : "☾ Dark"; }
function toggleTheme() { setTheme(themeNow() === "dark" ? "light" : "dark"); labelTheme(); }

setTheme(matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light");
DATA.graphs.forEach(indexGraph);
drawHead();
const [wantedGraph, ...wantedPath] = decodeURIComponent(location.hash.slice(1)).split(":");
if (DATA.graphs[wantedGraph]) chooseGraph(Number(wantedGraph), wantedPath.join(":")); else chooseGraph(mostTold());
const search = document.getElementById("search");
search.addEventListener("input", () => { state.query = search.value; drawTree(state); });
document.addEventListener("keydown", (e) => {
  if (e.key === "/" && document.activeElement !== search) { e.preventDefault(); search.focus(); }
  if (e.key === "Escape" && document.activeElement === search) { search.value = state.query = ""; drawTree(state); search.blur(); }
});
