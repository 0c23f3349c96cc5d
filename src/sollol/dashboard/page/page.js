"use strict";
// Everything that comes from the pool is put in as text; nothing is ever read as markup.
const byId = (id) => document.getElementById(id);

function el(tag, cls, ...children) {
  const made = document.createElement(tag);
  if (cls) made.className = cls;
  made.append(...children.filter((child) => child !== null && child !== ""));
  return made;
}

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
const count = (value) => Number(value || 0).toLocaleString("en");
const share = (value) => `${(100 * value).toFixed(value > 0.995 && value < 1 ? 2 : 1).replace(/\.0+$/, "")} %`;
const times = (value) => `${Number(value).toFixed(2)}×`;
const size = (bytes) => (bytes >= 1e9 ? `${(bytes / 1e9).toFixed(1)} GB` : `${Math.round(bytes / 1e6)} MB`);
const clock = (date, seconds) => date.toLocaleTimeString([], { hour: "2-digit", minute: "2-digit", second: seconds, hourCycle: "h23" });
function until(text) {
  const when = new Date(text);
  if (!text || Number.isNaN(when.getTime()) || when.getFullYear() < 2000) return "";
  if (when.getFullYear() > new Date().getFullYear() + 50) return "stays";
  return `until ${clock(when)}`;
}

// --- tables: rows are kept from frame to frame, so that focus, selection and place stay ---
const SHOWN = 12;
const LATE = 1.5; // times the prediction, from which on it is marked

class LiveTable {
  constructor(id, columns, empty, limit = Infinity) {
    this.columns = columns;
    this.limit = this.least = limit;
    this.rows = new Map();
    this.body = el("tbody");
    const head = el("tr", "", ...columns.map((column) => el("th", column.cls, column.head)));
    for (const cell of head.children) { cell.scope = "col"; cell.setAttribute("role", "columnheader"); }
    this.table = el("table", "", el("thead", "", head), this.body);
    // On a phone the rows are drawn as cards, and display:grid would take their meaning away.
    this.table.setAttribute("role", "table");
    this.body.setAttribute("role", "rowgroup");
    this.table.setAttribute("aria-labelledby", id);
    this.empty = el("p", "empty", empty);
    this.more = el("button", "more");
    this.more.type = "button";
    this.more.setAttribute("aria-expanded", "false");
    this.more.addEventListener("click", () => {
      this.limit = this.limit === Infinity ? limit : Infinity;
      this.more.setAttribute("aria-expanded", String(this.limit === Infinity));
      this.show(...this.last);
    });
    byId(`${id}-table`).append(this.table, this.empty, this.more);
  }

  show(data, keyOf) {
    this.last = [data, keyOf];
    this.more.hidden = data.length <= this.least;
    const label = this.limit === Infinity ? "Show fewer" : `Show all ${data.length}`;
    if (this.more.textContent !== label) this.more.textContent = label;
    const seen = new Map();
    let before = null;
    for (const row of data.slice(0, this.limit)) {
      const base = keyOf(row);
      seen.set(base, (seen.get(base) || 0) + 1);
      const key = `${base} ${seen.get(base)}`;
      let tr = this.rows.get(key);
      if (!tr) this.rows.set(key, (tr = this.make()));
      tr.fresh = true;
      this.fill(tr, row);
      const place = before ? before.nextSibling : this.body.firstChild;
      if (place !== tr) this.body.insertBefore(tr, place);
      before = tr;
    }
    for (const [key, tr] of this.rows) {
      if (!tr.fresh) { tr.remove(); this.rows.delete(key); }
      tr.fresh = false;
    }
    this.table.hidden = !data.length;
    this.empty.hidden = data.length > 0;
  }

  make() {
    const tr = el("tr", "", ...this.columns.map((column, place) => {
      const cell = el(place ? "td" : "th", column.cls);
      if (!place) cell.scope = "row";
      cell.setAttribute("role", place ? "cell" : "rowheader");
      cell.dataset.label = column.head;
      return cell;
    }));
    tr.setAttribute("role", "row");
    return tr;
  }

  fill(tr, row) {
    this.columns.forEach((column, place) => {
      const cell = tr.children[place];
      const shown = column.show(row);
      const parts = Array.isArray(shown) ? shown : [shown];
      // A function builds what text cannot say; the text before it tells whether it must be built again.
      const mark = parts.filter((part) => typeof part !== "function").join("\n");
      if (cell.mark === mark) return;
      cell.mark = mark;
      cell.classList.toggle("blank", mark === "");
      const build = parts.find((part) => typeof part === "function");
      cell.replaceChildren(...(build ? build() : [mark]));
    });
  }
}

// --- cells ---
const state = (row) => [row.state, row.why, (row.unable || []).join(), () => [
  el("span", `state ${row.state}`, row.state), row.why ? el("div", "why", row.why) : null,
  ...(row.unable || []).map((words) => el("div", "why", words)),
].filter(Boolean)];

function models(row) {
  // A node is asked for its memory every few seconds: of a model that it has not named yet nothing is claimed.
  const resting = Object.keys(row.slots).filter((name) => !row.loaded.some((model) => model.model === name));
  const rows = [...row.loaded, ...resting.map((name) => ({ model: name, processor: "" }))].map((model) => {
    const places = row.slots[model.model];
    const facts = [
      model.size ? size(model.size) : "", model.context_length ? `ctx ${count(model.context_length)}` : "",
      until(model.expires_at), places ? `${places} ${places === 1 ? "slot" : "slots"}` : "",
    ];
    return [model.model, model.processor, facts.filter(Boolean).join(" · ")];
  });
  return [...rows.map((parts) => parts.join(" ")), () => rows.map(([name, processor, facts]) => {
    const onCpu = processor.includes("CPU");
    const badge = processor ? el("span", onCpu ? "badge warn" : "badge", (onCpu ? "! " : "") + processor) : "";
    if (onCpu) badge.title = "A part of it did not fit into GPU memory; it can be 20 times slower";
    return el("span", "model", el("span", "name", name), " ", badge, " ", el("span", "quiet", facts));
  })];
}

function progress(row) {
  const late = row.elapsed_ms > LATE * row.predicted_ms;
  const text = `${time(row.elapsed_ms)} of ${time(row.predicted_ms)}`;
  return [text, Math.round(row.elapsed_ms / 100), () => {
    const bar = el("i");
    bar.style.width = `${Math.min(100, (100 * row.elapsed_ms) / Math.max(1, row.predicted_ms))}%`;
    return [el("span", late ? "late nowrap" : "nowrap", text), el("span", late ? "meter over" : "meter", bar)];
  }];
}

function call(row) {
  return [String(row.id), () => {
    const button = el("button", "call", String(row.id));
    button.type = "button";
    button.setAttribute("aria-label", `Explain call ${row.id}`);
    button.addEventListener("click", () => explain(row.id));
    return [button];
  }];
}

const what = (row) => `${row.kind}${row.items ? `, ${count(row.items)} ${row.items === 1 ? "item" : "items"}` : ""}`;
const outcome = (row) => [row.outcome, () => [el("span", row.outcome === "ok" ? "" : "badge bad", row.outcome)]];
const actual = (row) => {
  const late = row.outcome === "ok" && row.predicted_ms > 0 && row.actual_ms > LATE * row.predicted_ms;
  return [time(row.actual_ms), String(late), () => [el("span", late ? "late" : "", time(row.actual_ms))]];
};

const tables = {
  nodes: new LiveTable("nodes", [
    { head: "Node", cls: "name", show: (row) => row.host },
    { head: "State", show: state },
    { head: "Models", cls: "wide", show: models },
    { head: "Running", cls: "number of-requests", show: (row) => count(row.active_requests) },
    { head: "Latency", cls: "number", show: (row) => (row.latency_ms ? time(row.latency_ms) : "") },
    { head: "Throughput", cls: "number of-requests", show: (row) => (row.batch_throughput ? `${row.batch_throughput < 100 ? row.batch_throughput.toFixed(1) : count(Math.round(row.batch_throughput))} items/s` : "") },
    { head: "Requests", cls: "number of-requests", show: (row) => count(row.total_requests) },
    { head: "Success", cls: "number of-requests", show: (row) => (row.total_requests ? share(row.success_rate) : "") },
    { head: "Version", cls: "quiet", show: (row) => row.version },
  ], "No nodes. Add one with pool.add_node(…), or name them in SOLLOL_NODES."),
  running: new LiveTable("running", [
    { head: "Call", show: call },
    { head: "Model", cls: "name", show: (row) => row.model },
    { head: "Kind", show: what },
    { head: "Node", cls: "name", show: (row) => row.node },
    { head: "Elapsed of predicted", cls: "wide", show: progress },
    { head: "Priority", cls: "number", show: (row) => String(row.priority) },
    { head: "App", cls: "name", show: (row) => row.app },
    { head: "Reason", cls: "quiet", show: (row) => row.reason },
  ], "Nothing is running.", SHOWN),
  waiting: new LiveTable("waiting", [
    { head: "Call", show: call },
    { head: "Position", cls: "number", show: (row) => String(row.position) },
    { head: "Model", cls: "name", show: (row) => row.model },
    { head: "Waited", cls: "number", show: (row) => time(row.waited_ms) },
    { head: "Starts in", cls: "number", show: (row) => time(row.eta_ms) },
    { head: "Priority", cls: "number", show: (row) => String(row.priority) },
    { head: "App", cls: "name", show: (row) => row.app },
  ], "Nothing is waiting.", SHOWN),
  recent: new LiveTable("recent", [
    { head: "Call", show: call },
    { head: "At", cls: "nowrap", show: (row) => clock(new Date(row.at * 1000), "2-digit") },
    { head: "Model", cls: "name", show: (row) => row.model },
    { head: "Task", show: (row) => (row.task_type === row.kind ? row.kind : `${row.kind}: ${row.task_type}`) },
    { head: "Node", cls: "name", show: (row) => row.node },
    { head: "Outcome", show: outcome },
    { head: "Predicted", cls: "number", show: (row) => (row.predicted_ms ? time(row.predicted_ms) : "") },
    { head: "Actual", cls: "number", show: actual },
    { head: "Waited", cls: "number", show: (row) => time(row.queue_ms) },
    { head: "Attempts", cls: "number", show: (row) => String(row.attempts) },
    { head: "Reason", cls: "quiet", show: (row) => row.reason },
  ], "No requests yet.", SHOWN),
};

// --- one frame ---
function tiles(frame) {
  const up = frame.nodes.filter((node) => node.state === "up").length;
  const rows = [["Nodes up", String(up), `of ${frame.nodes.length}`]];
  if (frame.watching) {
    const loaded = frame.nodes.flatMap((node) => node.loaded);
    rows.push(["Models in memory", count(loaded.length), ""]);
    rows.push(["Of them on a CPU", count(loaded.filter((model) => model.processor.includes("CPU")).length), ""]);
  } else {
    const { total_requests: all, successful_requests: good, failed_requests: bad } = frame.totals;
    const { median, p90, count: known } = frame.calibration;
    rows.push(
      ["Running", count(frame.running.length), ""],
      ["Waiting", count(frame.waiting.length), ""],
      ["Requests", count(all), bad ? `${count(bad)} failed` : ""],
      ["Success", all ? share(good / all) : "–", ""],
      ["Of predicted time", known ? times(median) : "–", known ? `p90 ${times(p90)}` : ""],
    );
  }
  byId("tiles").replaceChildren(...rows.map(([name, value, more]) =>
    el("div", "", el("dt", "", name), el("dd", "", value, more ? " " : "", more ? el("small", "", more) : null))));
}

function calibration(frame) {
  const { median, p90, count: known } = frame.calibration;
  byId("calibration-text").textContent = known
    ? `Half of ${count(known)} answered calls took at most ${times(median)} their predicted time, nine of ten at most ${times(p90)}. 1.00× is a perfect prediction.`
    : "No call has been answered yet, so nothing can be compared with its prediction.";
  const points = frame.recent.filter((row) => row.outcome === "ok" && row.predicted_ms > 0 && row.actual_ms > 0);
  byId("scatter").hidden = points.length < 3;
  if (points.length >= 3) scatter(points);
}

function scatter(points) {
  const svg = byId("scatter").querySelector("svg");
  const all = points.flatMap((row) => [row.predicted_ms, row.actual_ms]).map(Math.log10);
  const low = Math.floor(Math.min(...all)), high = Math.max(low + 1, Math.ceil(Math.max(...all)));
  const along = (value) => 40 + (174 * (value - low)) / (high - low);
  const draw = (tag, values, cls, text) => {
    const made = document.createElementNS("http://www.w3.org/2000/svg", tag);
    for (const [name, value] of Object.entries(values)) made.setAttribute(name, value);
    if (cls) made.setAttribute("class", cls);
    if (text) made.textContent = text;
    return made;
  };
  const parts = [];
  for (let power = low; power <= high; power += 1) {
    const at = along(power), label = time(10 ** power);
    parts.push(draw("line", { x1: at, x2: at, y1: 6, y2: 180 }), draw("line", { x1: 40, x2: 214, y1: 220 - at, y2: 220 - at }));
    parts.push(draw("text", { x: at, y: 194, "text-anchor": power === high ? "end" : "middle" }, "", label));
    if (power > low) parts.push(draw("text", { x: 36, y: 223 - at, "text-anchor": "end" }, "", label));
  }
  parts.push(draw("line", { x1: 40, x2: 214, y1: 180, y2: 6 }, "right"));
  for (const row of points) parts.push(draw("circle", { cx: along(Math.log10(row.predicted_ms)), cy: 220 - along(Math.log10(row.actual_ms)), r: 3 }));
  svg.replaceChildren(...parts);
}

function show(frame) {
  const how = [frame.app_name, frame.routing_mode && `mode ${frame.routing_mode}`, frame.routing_strategy && `strategy ${frame.routing_strategy}`, `version ${frame.version}`];
  byId("who").textContent = how.filter(Boolean).join(" · ");
  document.title = frame.app_name ? `${frame.app_name} – SOLLOL` : "SOLLOL";
  document.body.classList.toggle("watching", Boolean(frame.watching));
  notice(frame.watching ? "The nodes are watched from outside: requests that programs send to them are not seen here. A program shows its own with run_unified_dashboard(pool)." : "");
  tiles(frame);
  tables.nodes.show(frame.nodes, (row) => row.host);
  tables.running.show(frame.running, (row) => `${row.id} ${row.node}`);
  tables.waiting.show(frame.waiting, (row) => row.id);
  tables.recent.show(frame.recent, (row) => row.id);
  calibration(frame);
}

function notice(text) {
  if (byId("notice").textContent !== text) byId("notice").textContent = text;
  byId("notice").hidden = !text;
}

// --- why a call went where it went ---
async function explain(id) {
  byId("explain-title").textContent = `Call ${id}`;
  byId("explain-body").replaceChildren("…");
  byId("explain").showModal();
  let told;
  try {
    const answer = await fetch(`api/explain/${id}`);
    told = await answer.json();
    if (!answer.ok) throw new Error(told.error);
  } catch (error) {
    byId("explain-body").replaceChildren(el("p", "", error.message));
    return;
  }
  byId("explain-title").textContent = `Call ${id}: ${told.kind} with ${told.model}`;
  byId("explain-body").replaceChildren(...explained(told));
}

function explained(told) {
  const facts = [
    ["State", told.state === "done" ? told.outcome : told.state], ["Node", told.node], ["Why there", told.reason],
    ["Task", told.task_type], ["Mode", told.mode], ["App", told.app], ["Position", told.position],
    ["Starts in", time(told.eta_ms)], ["Waited", time(told.queue_ms)],
    ["Predicted", told.predicted_ms ? time(told.predicted_ms) : ""],
    ["Actual", told.actual_ms ? `${time(told.actual_ms)}${told.predicted_ms ? ` (${times(told.actual_ms / told.predicted_ms)} predicted)` : ""}` : ""],
    ["Attempts", told.attempts],
  ].filter(([, value]) => value !== undefined && value !== null && value !== "");
  const parts = [el("dl", "", ...facts.flatMap(([name, value]) => [el("dt", "", name), el("dd", "", String(value))]))];
  for (const attempt of told.running || []) {
    parts.push(el("h3", "", `Running on ${attempt.node} (${attempt.reason}): ${time(attempt.elapsed_ms)} of ${time(attempt.predicted_ms)} predicted`));
    parts.push(candidates(attempt.candidates, attempt.node));
  }
  if (told.candidates && told.candidates.length) parts.push(el("h3", "", "Where it could have gone"), candidates(told.candidates, told.node));
  if (told.tried && told.tried.length) {
    parts.push(el("h3", "", "Tried before"));
    parts.push(el("ul", "", ...told.tried.map((row) => el("li", "", [row.node, row.outcome, row.why, row.ms === undefined ? "" : time(row.ms)].filter(Boolean).join(": ")))));
  }
  return parts;
}

function candidates(rows, chosen) {
  const terms = [...new Set(rows.flatMap((row) => Object.keys(row.terms)))];
  const head = ["Node", ...terms, "Would finish in"].map((name, place) => el("th", place ? "number" : "", name));
  const body = rows.map((row) => {
    const cells = [...terms.map((term) => time(row.terms[term])), time(row.finish_ms)];
    const first = el("th", "name", row.node === chosen ? `${row.node} (chosen)` : row.node);
    return el("tr", row.node === chosen ? "chosen" : "", first, ...cells.map((text) => el("td", "number", text)));
  });
  head.forEach((cell) => { cell.scope = "col"; });
  body.forEach((row) => { row.firstChild.scope = "row"; });
  return el("div", "table", el("table", "", el("thead", "", el("tr", "", ...head)), el("tbody", "", ...body)));
}

// --- the feed ---
let source = null, latest = 0, paused = false;

function say(kind, text) {
  const status = byId("status");
  if (status.textContent !== text) status.textContent = text;
  status.dataset.state = kind;
}

function listen() {
  if (source || paused || document.hidden) return;
  source = new EventSource("api/events");
  source.addEventListener("snapshot", (event) => {
    latest = Date.now();
    say("live", "Live");
    show(JSON.parse(event.data));
  });
  source.addEventListener("trouble", (event) => {
    latest = Date.now();
    say("lost", JSON.parse(event.data).error);
  });
  source.addEventListener("error", () => {
    say("lost", "No connection; trying again");
    if (source && source.readyState === EventSource.CLOSED) { silence(); setTimeout(listen, 3000); }
  });
}

function silence() {
  if (source) source.close();
  source = null;
}

byId("pause").addEventListener("click", () => {
  paused = !paused;
  byId("pause").textContent = paused ? "Go on" : "Pause";
  if (paused) { silence(); say("wait", `Paused at ${clock(new Date(), "2-digit")}`); } else { say("wait", "Connecting"); listen(); }
});
// A hidden page needs no news, and a listener's place is free for others.
document.addEventListener("visibilitychange", () => (document.hidden ? silence() : listen()));
setInterval(() => {
  if (source && source.readyState === EventSource.OPEN && latest && Date.now() - latest > 5000) say("lost", `No news since ${clock(new Date(latest), "2-digit")}`);
}, 1000);
listen();
