// --- a lane per node: each call is a bar from start to end, with a tick where it was predicted to end ---
const WINDOW_S = 60;
const BARS_MOST = 4000;
const ROWS_MOST = 8; // of one lane
const SHADES = { load: 0.35, prefill: 0.6, embed: 0.8, decode: 0.95 };
const bars = new Map(); // "id/number" -> bar
let placed = [];

function collect(frame, now) {
  for (const row of frame.recent) {
    if (row.at < now - WINDOW_S || bars.has(`${row.id}/0`)) continue;
    for (const [key, bar] of bars) if (bar.id === row.id && bar.running) bars.delete(key);
    const begin = row.at - row.total_ms / 1000;
    row.tries.forEach((attempt, number) => {
      const start = begin + attempt.started_ms / 1000, end = start + attempt.ms / 1000;
      const ok = attempt.outcome === "ok";
      const parts = ok && attempt.ms ? [["load", row.load_ms], ["prefill", row.prefill_ms], ["decode", row.decode_ms]] : [];
      bars.set(`${row.id}/${number}`, { id: row.id, row, node: attempt.node, start, end, ok, outcome: attempt.outcome, cause: attempt.cause, due: start + attempt.predicted_ms / 1000, parts });
    });
    if (!row.tries.length) bars.set(`${row.id}/0`, { id: row.id, row, node: "", start: begin, end: row.at, ok: row.outcome === "ok", outcome: row.outcome, cause: "first", due: 0, parts: [] });
  }
  const running = new Set();
  for (const row of frame.running) {
    const key = `${row.id}/r${row.attempt}`, start = now - row.elapsed_ms / 1000;
    running.add(key);
    bars.set(key, { id: row.id, row, node: row.node, start, end: now, running: true, ok: true, cause: row.cause, due: start + row.predicted_ms / 1000, parts: [[row.phase, row.elapsed_ms]] });
  }
  for (const [key, bar] of bars) if (bar.end < now - WINDOW_S || (bar.running && !running.has(key))) bars.delete(key);
  for (const key of bars.keys()) { if (bars.size <= BARS_MOST) break; bars.delete(key); }
}

function drawLanes(frame) {
  const now = Date.now() / 1000, canvas = byId("lanes"), box = canvas.parentElement;
  collect(frame, now);
  if (!box.clientWidth || document.hidden) return;
  const nodes = frame.nodes.slice(0, 40).map((row) => row.host);
  const wanted = matcher(view.filter), rows = new Map(nodes.map((node) => [node, []]));
  const sorted = [...bars.values()].sort((a, b) => a.start - b.start);
  const gap = (WINDOW_S / box.clientWidth) * 1.5; // seconds of one and a half pixels
  for (const bar of sorted) {
    const free = rows.get(bar.node);
    if (!free) continue;
    let place = free.findIndex((end) => end <= bar.start + gap);
    if (place < 0) place = free.length < ROWS_MOST ? free.length : ROWS_MOST - 1;
    free[place] = bar.end;
    bar.place = place;
  }
  const left = Math.min(170, Math.round(box.clientWidth * 0.25)), ratio = devicePixelRatio || 1, step = 11;
  const height = nodes.reduce((sum, node) => sum + 10 + step * Math.max(1, rows.get(node).length), 22);
  if (canvas.width !== Math.round(box.clientWidth * ratio) || canvas.height !== Math.round(height * ratio)) {
    canvas.width = Math.round(box.clientWidth * ratio);
    canvas.height = Math.round(height * ratio);
    canvas.style.width = `${box.clientWidth}px`;
    canvas.style.height = `${height}px`;
  }
  const area = box.getBoundingClientRect();
  if (area.bottom < 0 || area.top > innerHeight) return; // drawn when it is scrolled into view
  const context = canvas.getContext("2d"), style = getComputedStyle(document.documentElement);
  const color = (name) => style.getPropertyValue(name).trim();
  const x = (at) => left + ((at - (now - WINDOW_S)) / WINDOW_S) * (box.clientWidth - left - 8);
  context.setTransform(ratio, 0, 0, ratio, 0, 0);
  context.clearRect(0, 0, box.clientWidth, height);
  context.font = "12px system-ui, sans-serif";
  placed = [];
  let top = 4;
  const tops = new Map();
  for (const node of nodes) {
    tops.set(node, top);
    const down = frame.nodes.find((row) => row.host === node).state === "down";
    context.fillStyle = color(down ? "--soft" : "--ink");
    context.fillText(short(context, down ? `${node} (down)` : node, left - 22), 16, top + 10);
    context.fillStyle = colorOf(node);
    context.fillRect(6, top + 2, 5, 9);
    top += 10 + step * Math.max(1, rows.get(node).length);
    context.strokeStyle = color("--line");
    context.beginPath(); context.moveTo(0, top - 4.5); context.lineTo(box.clientWidth, top - 4.5); context.stroke();
  }
  for (const bar of sorted) {
    if (!tops.has(bar.node)) continue;
    const y = tops.get(bar.node) + step * bar.place, from = Math.max(left, x(bar.start)), to = Math.max(from + 1.5, x(bar.end));
    if (to < left) continue;
    const late = bar.due && bar.end > bar.start + LATE * (bar.due - bar.start);
    const base = bar.ok ? colorOf(bar.node) : color("--bad"), dim = wanted(bar.row) ? 1 : 0.15;
    const whole = bar.parts.reduce((sum, [, ms]) => sum + ms, 0);
    context.fillStyle = base;
    if (!whole) { context.globalAlpha = 0.7 * dim; context.fillRect(from, y, to - from, 9); } else {
      let at = from;
      const other = bar.running ? 0 : Math.max(0, (bar.end - bar.start) * 1000 - whole);
      if (other) { const end = at + ((to - from) * other) / (whole + other); context.globalAlpha = 0.25 * dim; context.fillRect(at, y, end - at, 9); at = end; }
      for (const [phase, ms] of bar.parts) { const end = at + ((to - from) * ms) / (whole + other); context.globalAlpha = (SHADES[phase] || 0.7) * dim; context.fillRect(at, y, end - at, 9); at = end; }
    }
    context.globalAlpha = dim;
    if (late) { context.strokeStyle = color("--late"); context.lineWidth = 1.5; context.strokeRect(from + 0.75, y + 0.75, to - from - 1.5, 7.5); context.lineWidth = 1; }
    if (bar.due && x(bar.due) > left && x(bar.due) < box.clientWidth - 4) { context.fillStyle = color("--ink"); context.fillRect(x(bar.due) - 0.75, y - 1, 1.5, 11); }
    context.globalAlpha = 1;
    placed.push([from, y, to, y + 9, bar]);
  }
  context.strokeStyle = color("--soft"); // hedges, takeovers and resumptions are joined to the attempt before
  for (const [from, y, , , bar] of placed) {
    if (bar.cause === "first" || bar.cause === "retry") continue;
    const before = placed.find((one) => one[4].id === bar.id && one[4] !== bar);
    if (before) { context.beginPath(); context.moveTo(before[0], before[1] + 4.5); context.lineTo(from, y + 4.5); context.stroke(); }
  }
  context.fillStyle = color("--soft");
  for (const seconds of [60, 45, 30, 15, 0]) {
    const label = seconds ? `-${seconds} s` : "now", at = x(now - seconds);
    context.textAlign = seconds === 60 ? "left" : seconds ? "center" : "right";
    context.fillText(label, at, height - 6);
  }
  context.textAlign = "left";
}

function short(context, text, most) {
  if (context.measureText(text).width <= most) return text;
  let kept = text;
  while (kept && context.measureText(`${kept}…`).width > most) kept = kept.slice(0, -1);
  return `${kept}…`;
}

function barAt(event) {
  const box = byId("lanes").getBoundingClientRect(), x = event.clientX - box.left, y = event.clientY - box.top;
  return placed.find(([left, top, right, bottom]) => x >= left - 2 && x <= right + 2 && y >= top && y <= bottom)?.[4];
}
byId("lanes").addEventListener("click", (event) => { const bar = barAt(event); if (bar) explain(bar.id); });
byId("lanes").addEventListener("mousemove", (event) => {
  const bar = barAt(event);
  byId("lanes").style.cursor = bar ? "pointer" : "";
  byId("lanes").title = bar ? `call ${bar.id}, ${bar.row.model}: ${time((bar.end - bar.start) * 1000)}${bar.cause === "first" ? "" : `, ${bar.cause}`}${bar.ok ? "" : `, ${bar.outcome}`}` : "";
});
byId("lanes-legend").append(...[["load", "loading"], ["prefill", "reading the prompt"], ["decode", "writing"]].map(([phase, words]) => {
  const box = el("i");
  box.style.opacity = SHADES[phase];
  return el("span", "", box, words);
}), el("span", "", el("i", "tick"), "predicted end"), el("span", "", el("i", "over"), "late"));
