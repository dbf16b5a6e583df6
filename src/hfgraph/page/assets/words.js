"use strict";
// Small helpers: elements, numbers in words, and what is known of a row of the tree.

const DATA = JSON.parse(document.getElementById("data").textContent);
const COLUMN = Object.fromEntries(DATA.fields.map((name, i) => [name, i]));

function el(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else node.setAttribute(name, value === true ? "" : value);
  }
  node.append(...children.flat(Infinity).filter((c) => c !== null && c !== undefined && c !== false && c !== ""));
  return node;
}

function replace(target, ...children) {
  target.replaceChildren(...children.flat(Infinity).filter((c) => c !== null && c !== undefined && c !== false && c !== ""));
}

const plural = (n, one, many = one + "s") => `${n.toLocaleString("en")} ${n === 1 ? one : many}`;
const arrow = (a, b) => (a === b ? a : `${a} → ${b}`);

function scaled(value, units, step) {
  let i = 0;
  while (Math.abs(value) >= step && i < units.length - 1) { value /= step; i++; }
  return `${Math.abs(value) >= 100 || Number.isInteger(value) ? Math.round(value) : value.toPrecision(3)} ${units[i]}`.trim();
}
const flops = (n) => scaled(n, ["", "k", "M", "G", "T", "P"], 1000);
const bytes = (n) => scaled(n, ["B", "kB", "MB", "GB", "TB"], 1000);
const seconds = (s) => (s >= 1 ? `${s.toFixed(1)} s` : `${(1000 * s).toFixed(s < 0.01 ? 1 : 0)} ms`);

// --- rows of the tree: `total` counts what is in a row, every folded module included

function prepare(row, parent = null) {
  row.parent = parent;
  row.children.forEach((child) => prepare(child, row));
  const count = (status) => row.sites.filter((s) => s.status === status).length;
  // What is recognised and then fused is one place.
  const sum = { done: Math.max(count("recognised"), count("fused")), near: count("near miss"), before: row.before, after: row.after };
  for (const key of Object.keys(sum)) sum[key] = row.paths.length * row.children.reduce((n, child) => n + child.total[key], sum[key]);
  row.total = sum;
}

function rowsOf(row) { return [row, ...row.children.flatMap(rowsOf)]; }
function mark(row) { return row.total.near && !row.total.done ? "near" : row.total.done ? "done" : ""; }
function isTraced(row) { return !row.total.done && !row.total.near && row.total.before > 0; }
function inside(path, row) { return row.path === "" || path === row.path || path.startsWith(row.path + "."); }
function sitesIn(row) { return rowsOf(row).flatMap((r) => r.sites.map((site) => ({ site, row: r }))); }

// How often a row stands for itself, counted from another row above it.
function times(row, above = null) {
  let n = 1;
  for (let r = row; r && r !== above; r = r.parent) n *= r.paths.length;
  return n;
}

function fullName(row) {
  const names = [];
  for (let r = row; r && r.parent; r = r.parent) names.unshift(r.name);
  return names.join(".");
}

const place = (site) => (site.source ? el("span", { class: "mono soft" }, site.source) : null);
const code = (site) => (site.code ? el("span", { class: "code" }, site.code) : null);
