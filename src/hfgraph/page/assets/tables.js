"use strict";
// Below the model: what nearly was, what stays as traced, the passes, the rules, graphs and breaks.

function table(columns, rows) {
  return el("div", { class: "scroll" }, el("table", {}, el("thead", {}, el("tr", {}, columns.map(([name, kind]) => el("th", { class: kind }, name)))),
    el("tbody", {}, rows.map((row) => el("tr", {}, row.map((cell, i) => el("td", { class: columns[i][1] }, cell)))))));
}

function section(id, title, note, content) {
  return el("section", { id }, el("h2", {}, title), note && el("p", { class: "soft" }, note), content);
}

function drawTables(state) {
  const graph = DATA.graphs[state.graph];
  replace(document.getElementById("tables"), nearTable(graph), tracedTable(graph), ruleTable(graph), passTable(graph), graphTable());
}

function nearTable(graph) {
  const found = grouped(sitesIn(graph.tree).filter(({ site }) => site.status === "near miss"));
  const rows = found.map((g) => [el("span", { class: "tag near" }, g.site.rule), String(g.count * times(g.row)),
    [el("button", { class: "mono linkish", onclick: () => select(g.row, true) }, fullName(g.row) || DATA.model), el("div", { class: "code" }, g.site.source)], [el("div", { class: "why" }, sentence(g.site, graph)), el("div", { class: "code" }, g.site.code)]]);
  return rows.length ? section("near", "Nearly rewritten", "The code began like a rule's pattern and then differed. It was left as it is.", table([["rule"], ["places", "n"], ["where"], ["why not"]], rows)) : null;
}

function tracedTable(graph) {
  const kinds = new Map();
  for (const row of rowsOf(graph.tree)) {
    if (!row.before || row.sites.some((s) => s.status !== "near miss")) continue;
    const key = row.class || "outside of modules";
    if (!kinds.has(key)) kinds.set(key, { rows: [], places: 0, nodes: 0 });
    const kind = kinds.get(key);
    kind.rows.push(row); kind.places += times(row); kind.nodes += row.before * times(row);
  }
  const rows = [...kinds].sort((a, b) => b[1].nodes - a[1].nodes).map(([name, k]) => [name, String(k.places), String(k.nodes),
    el("button", { class: "mono linkish", onclick: () => select(k.rows[0], true) }, fullName(k.rows[0]) || DATA.model)]);
  return rows.length ? section("traced", "As traced, by class", "Modules whose own code no rule rewrote: it goes to Inductor as it is.", table([["class"], ["modules", "n"], ["nodes", "n"], ["for instance"]], rows)) : null;
}

function ruleTable(graph) {
  const rows = graph.rules.map((r) => [r.stage, el("span", { class: r.matches ? "tag done" : "tag near" }, r.rule), String(r.matches), String(r.near_misses),
    r.matches ? arrow(r.removed.nodes, r.added.nodes) : "", r.matches ? arrow(flops(r.removed.flops), flops(r.added.flops)) : "", r.matches ? arrow(bytes(r.removed.bytes), bytes(r.added.bytes)) : ""]);
  const note = "Nodes, flops and bytes of what each rule took out and put in. An operator on its own reads its inputs and writes its result; Inductor fuses beyond that.";
  return section("rules", "Rules", note, rows.length ? table([["stage"], ["rule"], ["matches", "n"], ["nearly", "n"], ["nodes", "n"], ["flops", "n"], ["bytes", "n"]], rows) : el("p", {}, "No rule matched."));
}

function passTable(graph) {
  if (!graph.passes.length) return null;
  const slowest = Math.max(graph.seconds.capture, ...graph.passes.map((p) => p.seconds));
  const time = (s) => [el("span", { class: "meter", style: `width:${(90 * s) / slowest}px` }), seconds(s)];
  const line = (stage, name, changes, s, w) => [stage, name, changes, String(w.nodes), flops(w.flops), bytes(w.bytes), time(s)];
  const rows = [line("capture", "Dynamo's graph as plain operators", "", graph.seconds.capture, graph.captured), ...graph.passes.map((p) => line(p.stage, p.name, String(p.changes), p.seconds, p.work))];
  const after = graph.seconds.compile ? `Inductor then took ${seconds(graph.seconds.compile)}.` : "Inductor did not run: this report looked at the graph only.";
  return section("passes", "Passes", `What each left behind. ${after}`, table([["stage"], ["pass"], ["changes", "n"], ["nodes", "n"], ["flops", "n"], ["bytes", "n"], ["time"]], rows));
}

function graphTable() {
  const rows = DATA.graphs.map((g, i) => [el("button", { class: "linkish", onclick: () => chooseGraph(i) }, `graph ${i}`), String(g.calls), String(g.dynamo_nodes), `${g.tree.total.done}`, `${g.tree.total.near}`,
    g.unrewritten ? el("span", { class: "ends" }, `left as it was: ${g.unrewritten}`) : g.ended ? breakElement(g.ended) : "the end of its function"]);
  const listed = DATA.breaks.length ? table([["graph break"], ["times", "n"], ["where"], ["what to do"]], DATA.breaks.map((b) => [[el("b", {}, b.words || b.reason), b.words && el("div", { class: "soft" }, `Dynamo: ${b.reason}`), b.explanation && el("div", { class: "soft" }, b.explanation)], String(b.count),
    [el("span", { class: "mono" }, b.source), b.code && el("div", { class: "code" }, b.code)], [b.advice, ...b.hints].map((h) => h && el("div", {}, h))])) : el("p", {}, "No graph breaks: Dynamo traced the call in one piece.");
  return section("breaks", "Graphs and graph breaks", "At a graph break Dynamo ends a graph, runs Python, and begins another; nothing is rewritten across it.",
    [DATA.graphs.length > 1 || rows.some((r) => typeof r[5] !== "string") ? table([["graph"], ["calls", "n"], ["nodes", "n"], ["rewritten", "n"], ["nearly", "n"], ["ended by"]], rows) : null, el("div", { style: "height:12px" }), listed]);
}

const breakElement = (b) => [el("span", { class: "ends" }, b.words || b.reason), " ", el("span", { class: "mono soft" }, b.source)];
