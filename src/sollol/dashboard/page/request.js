// --- why a call went where it went ---
async function explain(id) {
  remember({ call: String(id) });
  byId("explain-title").textContent = `Call ${id}`;
  byId("explain-body").replaceChildren("…");
  if (!byId("explain").open) byId("explain").showModal();
  let found;
  try {
    const answer = await fetch(`api/explain/${encodeURIComponent(id)}`);
    found = await answer.json();
    if (!answer.ok) throw new Error(found.error?.message || found.error || answer.statusText);
  } catch (error) {
    byId("explain-body").replaceChildren(el("p", "", error.message));
    return;
  }
  byId("explain-title").textContent = `Call ${id}: ${found.kind} with ${found.model}`;
  byId("explain-body").replaceChildren(...explained(found));
}
byId("explain").addEventListener("close", () => remember({ call: "" }));

function explained(found) {
  const facts = [
    ["State", found.state === "done" ? found.outcome : found.state], ["Error", found.error], ["Node", found.node], ["Why there", found.reason],
    ["Task", found.task_type], ["Mode", found.mode], ["App", found.app], ["Priority", found.priority], ["Position", found.position],
    ["Starts in", time(found.eta_ms)], ["Waited", time(found.queue_ms)],
    ["First token", found.first_token_ms ? `${time(found.first_token_ms)} after its arrival` : ""],
    ["Predicted", found.predicted_ms ? time(found.predicted_ms) : ""],
    ["Actual", found.actual_ms ? `${time(found.actual_ms)}${found.predicted_ms ? ` (${times(found.actual_ms / found.predicted_ms)} predicted)` : ""}` : ""],
    ["Tokens", found.tokens_out || found.tokens_in ? `${count(found.tokens_in)} read, ${count(found.tokens_out)} written` : ""],
    ["Items", typeof found.items === "number" && found.items ? `${count(found.items)}, ${count(found.failed_items)} failed` : ""],
    ["Attempts", found.attempts],
  ].filter(([, value]) => value !== undefined && value !== null && value !== "");
  const parts = [el("dl", "facts", ...facts.flatMap(([name, value]) => [el("dt", "", name), el("dd", "", String(value))]))];
  for (const attempt of found.running || []) {
    parts.push(el("h3", "", `Running on ${attempt.node} (${attempt.reason}): ${time(attempt.elapsed_ms)} of ${time(attempt.predicted_ms)} predicted`));
    parts.push(candidates(attempt.candidates, attempt.node));
  }
  if (found.candidates && found.candidates.length) parts.push(el("h3", "", "Where it could have gone"), candidates(found.candidates, found.node, found));
  if (found.tried && found.tried.length) {
    parts.push(el("h3", "", "Tried before"));
    parts.push(el("ul", "", ...found.tried.map((row) => el("li", "", [row.node, row.outcome, row.why, row.ms === undefined ? "" : time(row.ms)].filter(Boolean).join(": ")))));
  }
  if (found.state === "running" || found.state === "waiting") {
    const button = actButton("Cancel this call", `Cancel call ${found.id}`, `api/requests/${found.id}/cancel`, null, true);
    if (button) parts.push(el("div", "actions", button));
  }
  for (const seam of found.seams || []) parts.push(el("p", "", `${seam.node} went on with the answer after ${count(seam.characters)} characters.`));
  return parts;
}

const TERMS = { wait: "#8a938f", load: "#a37a00", displaces: "#c2661b", prefill: "#2f7fb8", embed: "#2a8a5f", decode: "#2a8a5f", overhead: "#7a6bc4", failures: "#c04f4f" };

function stackedBar(terms, longest) {
  const bar = el("span", "terms");
  for (const [name, ms] of Object.entries(terms)) {
    const part = el("i");
    part.style.width = `${(100 * ms) / longest}%`;
    part.style.background = TERMS[name] || "#8a938f";
    part.title = `${name} ${time(ms)}`;
    bar.append(part);
  }
  bar.setAttribute("role", "img");
  bar.setAttribute("aria-label", Object.entries(terms).map(([name, ms]) => `${name} ${time(ms)}`).join(", "));
  return bar;
}

function candidates(rows, chosen, found) {
  const terms = [...new Set(rows.flatMap((row) => Object.keys(row.terms)))];
  const happened = found && found.outcome === "ok" && found.actual_ms ? { load: found.load_ms, prefill: found.prefill_ms, decode: found.decode_ms } : null;
  if (happened) happened.overhead = Math.max(0, found.actual_ms - happened.load - happened.prefill - happened.decode);
  const longest = Math.max(1, ...rows.map((row) => row.finish_ms), happened ? found.actual_ms : 0);
  const head = ["Node", "", ...terms, "Would finish in"].map((name, place) => el("th", place > 1 ? "number" : "", name));
  const body = rows.map((row) => {
    const cells = [...terms.map((term) => time(row.terms[term])), time(row.finish_ms)];
    const first = el("th", "name", row.node === chosen ? `${row.node} (chosen)` : row.node);
    return el("tr", row.node === chosen ? "chosen" : "", first, el("td", "bars", stackedBar(row.terms, longest)), ...cells.map((text) => el("td", "number", text)));
  });
  if (happened) {
    const cells = [...terms.map((term) => (happened[term] ? time(happened[term]) : "")), time(found.actual_ms)];
    body.push(el("tr", "happened", el("th", "name", "what happened"), el("td", "bars", stackedBar(happened, longest)), ...cells.map((text) => el("td", "number", text))));
  }
  head.forEach((cell) => { cell.scope = "col"; });
  body.forEach((row) => { row.firstChild.scope = "row"; });
  return el("div", "table", el("table", "", el("thead", "", el("tr", "", ...head)), el("tbody", "", ...body)));
}

// --- calibration ---
function showCalibration(frame) {
  const { median, p90, count: known } = frame.calibration;
  setText(byId("calibration-text"), known
    ? `Half of ${count(known)} answered calls took at most ${times(median)} their predicted time, nine of ten at most ${times(p90)}. 1.00× is a perfect prediction.`
    : "No call has been answered yet, so nothing can be compared with its prediction.");
  const points = frame.recent.filter((row) => row.outcome === "ok" && row.predicted_ms > 0 && row.actual_ms > 0);
  byId("scatter").hidden = points.length < 3;
  if (points.length >= 3) scatter(points);
}

function scatter(points) {
  const box = byId("scatter").querySelector("svg");
  const all = points.flatMap((row) => [row.predicted_ms, row.actual_ms]).map(Math.log10);
  const low = Math.floor(Math.min(...all)), high = Math.max(low + 1, Math.ceil(Math.max(...all)));
  const along = (value) => 40 + (174 * (value - low)) / (high - low);
  const parts = [];
  for (let power = low; power <= high; power += 1) {
    const at = along(power), label = time(10 ** power);
    parts.push(svg("line", { x1: at, x2: at, y1: 6, y2: 180 }), svg("line", { x1: 40, x2: 214, y1: 220 - at, y2: 220 - at }));
    parts.push(svg("text", { x: at, y: 194, "text-anchor": power === high ? "end" : "middle" }, "", label));
    if (power > low) parts.push(svg("text", { x: 36, y: 223 - at, "text-anchor": "end" }, "", label));
  }
  parts.push(svg("line", { x1: 40, x2: 214, y1: 180, y2: 6 }, "right"));
  for (const row of points) parts.push(svg("circle", { cx: along(Math.log10(row.predicted_ms)), cy: 220 - along(Math.log10(row.actual_ms)), r: 3, fill: colorOf(row.node) }));
  box.replaceChildren(...parts);
}
