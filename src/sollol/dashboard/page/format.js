"use strict";
// Everything that comes from the pool is put in as text; nothing is ever read as markup.
const byId = (id) => document.getElementById(id);

function el(tag, cls, ...children) {
  const made = document.createElement(tag);
  if (cls) made.className = cls;
  made.append(...children.filter((child) => child !== null && child !== undefined && child !== ""));
  return made;
}

function svg(tag, values, cls, text) {
  const made = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(values)) made.setAttribute(name, value);
  if (cls) made.setAttribute("class", cls);
  if (text) made.textContent = text;
  return made;
}

function setText(node, text) {
  if (node.textContent !== text) node.textContent = text;
}

// Words with `commands` in them.
const withCode = (text) => text.split("`").map((part, place) => (place % 2 ? el("code", "", part) : part));

// --- words for numbers ---
function time(ms) {
  if (ms === null || ms === undefined) return "";
  if (ms < 1000) return `${Math.round(ms)} ms`;
  if (ms < 9950) return `${(ms / 1000).toFixed(1)} s`;
  const whole = Math.round(ms / 1000);
  if (whole < 60) return `${whole} s`;
  const minutes = Math.floor(whole / 60);
  if (minutes < 60) return `${minutes} min ${String(whole % 60).padStart(2, "0")} s`;
  return `${Math.floor(minutes / 60)} h ${String(minutes % 60).padStart(2, "0")} min`;
}
function ago(seconds) {
  if (seconds < 120) return `${Math.max(0, Math.round(seconds))} s`;
  if (seconds < 7200) return `${Math.floor(seconds / 60)} min`;
  return seconds < 172800 ? `${Math.floor(seconds / 3600)} h` : `${Math.floor(seconds / 86400)} days`;
}
const count = (value) => Number(value || 0).toLocaleString("en");
const rate = (value) => (value === 0 ? "0" : value < 10 ? value.toFixed(1) : count(Math.round(value)));
const share = (value) => `${(100 * value).toFixed(value > 0.995 && value < 1 ? 2 : 1).replace(/\.0+$/, "")} %`;
const times = (value) => `${Number(value).toFixed(2)}×`;
const size = (bytes) => (bytes >= 1e9 ? `${(bytes / 1e9).toFixed(1)} GB` : `${Math.round(bytes / 1e6)} MB`);
const clock = (date, seconds) => date.toLocaleTimeString([], { hour: "2-digit", minute: "2-digit", second: seconds, hourCycle: "h23" });
const day = (at) => { const when = new Date(at * 1000); return `${when.toLocaleDateString([], { day: "2-digit", month: "short" })} ${clock(when, "2-digit")}`; };
function until(text) {
  const when = new Date(text);
  if (!text || Number.isNaN(when.getTime()) || when.getFullYear() < 2000) return "";
  if (when.getFullYear() > new Date().getFullYear() + 50) return "stays";
  return `until ${clock(when)}`;
}

// --- one colour a node, the same everywhere; each has contrast 3 to both grounds ---
const PALETTE = ["#2f7fb8", "#c2661b", "#2a8a5f", "#b0489a", "#7a6bc4", "#a37a00", "#c04f4f", "#3b8c96", "#6f7f2e", "#8a6d5a", "#4f74d1", "#9a5b2f"];
const colors = new Map();
function colorOf(node) {
  if (!colors.has(node)) colors.set(node, PALETTE[colors.size % PALETTE.length]);
  return colors.get(node);
}

const LATE = 1.5; // times the prediction, from which on a call is marked
const isLate = (row) => row.predicted_ms > 0 && (row.elapsed_ms ?? row.actual_ms) > LATE * row.predicted_ms;

// --- what the address holds: view, filter, chart, and the open call ---
const DEFAULTS = { tab: "overview", filter: "", metric: "requests", span: "5m", call: "" };
const view = { ...DEFAULTS, ...Object.fromEntries(new URLSearchParams(location.hash.slice(1))) };
function remember(changes) {
  Object.assign(view, changes);
  const kept = Object.entries(view).filter(([name, value]) => name in DEFAULTS && value !== DEFAULTS[name]);
  history.replaceState(null, "", kept.length ? `#${new URLSearchParams(kept)}` : location.pathname + location.search);
}
