// --- tables: rows are kept from frame to frame, so that focus, selection and place stay ---
const SHOWN_MOST = 50; // rows; more cost more time to lay out than a reader has use for

class LiveTable {
  constructor(id, columns, empty, most = SHOWN_MOST) {
    this.most = most;
    this.columns = columns;
    this.rows = new Map();
    this.body = el("tbody");
    const head = el("tr", "", ...columns.map((column) => el("th", column.cls, column.head)));
    for (const cell of head.children) { cell.scope = "col"; }
    this.table = el("table", "", el("thead", "", head), this.body);
    this.table.setAttribute("aria-labelledby", id);
    this.nothing = empty;
    this.empty = el("p", "empty", empty);
    byId(`${id}-table`).append(this.table, this.empty);
  }

  show(data, keyOf) {
    const seen = new Map();
    let before = null;
    for (const row of data.slice(0, this.most)) {
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
    const more = data.length - this.most;
    setText(this.empty, more > 0 ? `and ${more} more; the filter finds them` : this.nothing);
    this.empty.hidden = data.length > 0 && more <= 0;
  }

  make() {
    return el("tr", "", ...this.columns.map((column, place) => {
      const cell = el(place ? "td" : "th", column.cls);
      if (!place) cell.scope = "row";
      return cell;
    }));
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
function meter(elapsed, predicted, late) {
  const bar = el("i");
  bar.style.width = `${Math.min(100, (100 * elapsed) / Math.max(1, predicted))}%`;
  return el("span", late ? "meter over" : "meter", bar);
}

function progress(row) {
  const late = isLate(row), text = `${time(row.elapsed_ms)} of ${time(row.predicted_ms)}`;
  return [text, Math.round(row.elapsed_ms / 100), () => [el("span", late ? "late nowrap" : "nowrap", text), meter(row.elapsed_ms, row.predicted_ms, late)]];
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

function nodeName(row) {
  const names = row.node ? row.node.split(", ") : [];
  return [row.node, () => names.map((name) => {
    const made = el("span", "with-color", name);
    made.style.setProperty("--node", colorOf(name));
    return made;
  })];
}

const what = (row) => `${row.kind}${row.items ? `, ${count(row.items)} ${row.items === 1 ? "item" : "items"}` : ""}`;
const outcome = (row) => [row.outcome, row.error, () => [el("span", row.outcome === "ok" ? "" : "badge bad", row.outcome), row.error ? el("div", "why", row.error) : ""]];
const actual = (row) => [time(row.actual_ms), String(isLate(row)), () => [el("span", row.outcome === "ok" && isLate(row) ? "late" : "", time(row.actual_ms))]];

// The columns of finished requests.
const finished = [
  { head: "Call", show: call },
  { head: "At", cls: "minor nowrap", show: (row) => clock(new Date(row.at * 1000), "2-digit") },
  { head: "Model", cls: "name", show: (row) => row.model },
  { head: "Task", cls: "minor", show: (row) => (row.items ? what(row) : row.task_type === row.kind ? row.kind : `${row.kind}: ${row.task_type}`) },
  { head: "Node", cls: "name", show: nodeName },
  { head: "Outcome", cls: "outcome", show: outcome },
  { head: "Predicted", cls: "minor number", show: (row) => (row.predicted_ms ? time(row.predicted_ms) : "") },
  { head: "Actual", cls: "number", show: actual },
  { head: "First token", cls: "minor number", show: (row) => (row.first_token_ms ? time(row.first_token_ms) : "") },
  { head: "Waited", cls: "minor number", show: (row) => time(row.queue_ms) },
  { head: "Tokens", cls: "minor number", show: (row) => (row.tokens_out ? count(row.tokens_out) : "") },
  { head: "Attempts", cls: "minor number", show: (row) => String(row.attempts) },
  { head: "App", cls: "minor name", show: (row) => row.app },
];

const tables = {
  running: new LiveTable("running", [
    { head: "Call", show: call },
    { head: "Model", cls: "name", show: (row) => row.model },
    { head: "Kind", cls: "minor", show: (row) => `${what(row)}, ${row.phase}` },
    { head: "Node", cls: "name", show: nodeName },
    { head: "Elapsed of predicted", cls: "wide", show: progress },
    { head: "App", cls: "minor name", show: (row) => row.app },
    { head: "Reason", cls: "quiet", show: (row) => (row.cause === "first" ? row.reason : `${row.cause}: ${row.reason}`) },
  ], "Nothing is running."),
  waiting: new LiveTable("waiting", [
    { head: "Call", show: call },
    { head: "Position", cls: "minor number", show: (row) => String(row.position) },
    { head: "Model", cls: "name", show: (row) => row.model },
    { head: "Waited", cls: "number", show: (row) => time(row.waited_ms) },
    { head: "Starts in", cls: "number", show: (row) => time(row.eta_ms) },
    { head: "Priority", cls: "minor number", show: (row) => String(row.priority) },
    { head: "App", cls: "minor name", show: (row) => row.app },
  ], "Nothing is waiting."),
  applications: new LiveTable("applications", [
    { head: "Application", cls: "name", show: (row) => row.app || "without a name" },
    { head: "Processes", cls: "number", show: (row) => count(row.processes) },
    { head: "Requests/s", cls: "number", show: (row) => rate(row.requests_per_s) },
    { head: "Failed/s", cls: "number", show: (row) => rate(row.failed_per_s) },
    { head: "Requests", cls: "number", show: (row) => count(row.requests) },
    { head: "Failed", cls: "number", show: (row) => count(row.failed) },
    { head: "Running", cls: "minor number", show: (row) => count(row.running) },
    { head: "Waiting", cls: "minor number", show: (row) => count(row.waiting) },
  ], "No application has been read yet."),
  recent: new LiveTable("recent", finished, "No requests yet."),
  history: new LiveTable("history", [{ ...finished[0], show: (row) => String(row.id) }, { ...finished[1], show: (row) => day(row.at) }, ...finished.slice(2)], "No stored request fits.", Infinity),
  settings: new LiveTable("settings", [
    { head: "Setting", cls: "name", show: (row) => row.name },
    { head: "Value", cls: "name", show: (row) => (row.value === null || row.value === "" ? "not set" : typeof row.value === "string" ? row.value : JSON.stringify(row.value)) },
    { head: "From", cls: "quiet name", show: (row) => row.origin },
  ], "No settings.", Infinity),
};

// --- the filter: words, and model: node: app: kind: failed late ---
function matcher(text) {
  const terms = text.toLowerCase().split(/\s+/).filter(Boolean).map((word) => {
    const [, name, value] = /^(model|node|app|kind):(.*)$/.exec(word) || [];
    if (name) return (row) => String(row[name] || "").toLowerCase().includes(value);
    if (word === "failed") return (row) => row.outcome !== undefined && row.outcome !== "ok";
    if (word === "late") return isLate;
    return (row) => ["id", "model", "node", "app", "kind", "error", "outcome"].some((field) => String(row[field] ?? "").toLowerCase().includes(word));
  });
  return (row) => terms.every((term) => term(row));
}
