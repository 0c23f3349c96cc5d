// --- nodes: cards, or a heat map where there are many ---
const CARDS_MOST = 24;
const cards = new Map();

function chips(row) {
  const made = row.loaded.map((model) => {
    const onCpu = model.processor.includes("CPU");
    const chip = el("li", onCpu ? "chip warn" : "chip", el("b", "", model.model), " ", el("span", "", (onCpu ? "! " : "") + model.processor));
    const slots = row.slots[model.model], used = row.usedBy.get(model.model) || 0;
    if (slots) chip.append(" ", dots(used, slots));
    const unload = actButton("×", `Unload ${model.model} from ${row.host}`, "api/models/unload", { model: model.model, node: row.host });
    if (unload) chip.append(unload);
    chip.title = [model.size ? size(model.size) : "", model.context_length ? `context ${count(model.context_length)}` : "", until(model.expires_at), onCpu ? "a part of it is on the CPU: it can be 20 times slower" : ""].filter(Boolean).join(" · ");
    return chip;
  });
  for (const load of row.loading) {
    const stuck = load.state === "stuck", left = load.eta_ms == null ? "" : `, ${time(load.eta_ms)} left`;
    made.push(el("li", stuck ? "chip loading warn" : "chip loading", el("b", "", load.model), ` ${stuck ? "! is stuck" : "loads"}: ${time(load.elapsed_ms)} of ${time(load.predicted_ms)}${left}`, meter(load.elapsed_ms, load.predicted_ms, stuck)));
  }
  return made;
}

function dots(used, slots) {
  const text = `${used} of ${slots} ${slots === 1 ? "slot" : "slots"} in use`;
  const made = slots > 12 ? el("span", "slots", `${used}/${slots}`) : el("span", "slots", ...Array.from({ length: Math.max(slots, used) }, (_, place) => el("i", place < used ? "used" : "")));
  made.setAttribute("role", "img");
  made.setAttribute("aria-label", text);
  made.title = text;
  return made;
}

// What the agent of a node reports; the age is by its own clock.
function machine(agent) {
  const report = agent.report;
  if (!report) return [el("p", "why", `its agent cannot be used: ${agent.problem}`)];
  const made = report.gpus.map((gpu) => {
    const known = gpu.memory_bytes != null && gpu.used_bytes != null;
    const facts = [
      known ? `${size(gpu.used_bytes)} of ${size(gpu.memory_bytes)}` : gpu.memory_bytes != null ? size(gpu.memory_bytes) : "",
      gpu.busy != null ? `${share(gpu.busy)} busy` : "", gpu.temperature_c != null ? `${Math.round(gpu.temperature_c)} °C` : "",
      gpu.power_w != null ? `${Math.round(gpu.power_w)} W` : "",
    ].filter(Boolean).join(" · ");
    return el("li", gpu.temperature_c >= HOT_C ? "late" : "", el("b", "", gpu.name), ` ${facts}`, known ? meter(gpu.used_bytes, gpu.memory_bytes, gpu.used_bytes > FULL * gpu.memory_bytes) : "");
  });
  const rest = [
    report.memory_bytes ? `memory ${size(report.available_bytes)} of ${size(report.memory_bytes)} free` : "",
    report.disk_free_bytes != null ? `disk ${size(report.disk_free_bytes)} free` : "",
  ].filter(Boolean).join(" · ");
  return rest ? [...made, el("li", "", rest)] : made;
}
const HOT_C = 90, FULL = 0.95, BY_HAND = "an operator keeps new work away";

function makeCard(row) {
  const parts = { machine: el("ul", "machine quiet"), source: el("p", "quiet source"), state: el("span", "state"), since: el("span", "quiet"), why: el("p", "why"), chips: el("ul", "chips"), facts: el("p", "quiet facts-line") };
  parts.path = svg("polyline", { fill: "none", points: "" });
  const line = svg("svg", { viewBox: "0 0 100 24", preserveAspectRatio: "none", "aria-hidden": "true" }, "spark");
  line.append(parts.path);
  const name = el("h3", "with-color", row.host);
  name.style.setProperty("--node", colorOf(row.host));
  line.style.setProperty("--node", colorOf(row.host));
  name.tabIndex = -1;
  const find = el("button", "link", "calls");
  find.type = "button";
  find.setAttribute("aria-label", `Show the calls of ${row.host}`);
  find.addEventListener("click", () => setFilter(`node:${row.host}`));
  parts.drain = el("span");
  parts.box = el("article", "card node", el("div", "node-head", name, parts.state), el("div", "node-sub", parts.since, el("span", "node-links", parts.drain, find)), parts.why, parts.chips, parts.machine, parts.source, parts.facts, line);
  return parts;
}

function fillCard(parts, row, place, at) {
  const down = row.state === "down";
  parts.box.classList.toggle("is-down", down);
  parts.state.className = `state ${row.state}`;
  setText(parts.state, row.drained && !down ? "drained" : row.state);
  const byHand = row.drained_for.includes(BY_HAND); // its owner's reasons end by themselves
  const drainMark = `${canAct} ${byHand}`;
  if (parts.drainMark !== drainMark) {
    parts.drainMark = drainMark;
    const verb = byHand ? "resume" : "drain";
    const button = actButton(verb, byHand ? `Let work come to ${row.host} again` : `Keep new work away from ${row.host}`, `api/nodes/${row.host}/${verb}`);
    if (button) button.className = "link";
    parts.drain.replaceChildren(...(button ? [button] : []));
  }
  const since = row.since ? `${down ? "last seen" : "for"} ${ago(at - row.since)}${down ? " ago" : ""}` : "";
  setText(parts.since, [row.version && !down ? `version ${row.version}` : "", since].filter(Boolean).join(" · "));
  const words = [row.why, ...row.drained_for, ...(row.unable || [])].filter(Boolean).join("; ");
  setText(parts.why, words);
  parts.why.hidden = !words;
  const mark = down ? "" : JSON.stringify([row.loaded, row.slots, row.loading, [...row.usedBy], canAct]);
  if (parts.mark !== mark) {
    parts.mark = mark;
    parts.chips.replaceChildren(...(down ? [] : row.loaded.length || row.loading.length ? chips(row) : [el("li", "quiet", "no model in memory")]));
  }
  const agent = down ? null : frame.agents?.[row.host], agentMark = agent ? JSON.stringify({ ...agent, report: agent.report && { ...agent.report, at: 0 } }) : "";
  if (parts.agentMark !== agentMark) {
    parts.agentMark = agentMark;
    parts.machine.replaceChildren(...(agent ? machine(agent) : []));
  }
  setText(parts.source, agent?.report ? `by its agent, ${ago(at - agent.report.at)} ago` : "");
  parts.machine.hidden = !agent;
  parts.source.hidden = !agent?.report;
  const series = work.fine, memory = row.loaded.reduce((sum, model) => sum + (model.size || 0), 0);
  const facts = down ? [] : [
    memory ? `${size(memory)} in memory` : "", row.latency_ms ? `latency ${time(row.latency_ms)}` : "",
    row.total_requests ? `${count(row.total_requests)} requests` : "", row.total_requests ? `${share(row.success_rate)} answered` : "",
    row.batch_throughput ? `${rate(row.batch_throughput)} items/s` : "",
  ];
  setText(parts.facts, facts.filter(Boolean).join(" · "));
  const values = !series || down ? [] : series.tokens[place] ? series.tokens[place].map((value, at) => value + series.items[place][at]) : [];
  spark(parts.path, values);
}

function showNodes(frame) {
  const used = new Map(); // node -> model -> attempts
  for (const row of frame.running) {
    const models = used.get(row.node) || new Map();
    models.set(row.model, (models.get(row.model) || 0) + 1);
    used.set(row.node, models);
  }
  for (const row of frame.nodes) { row.usedBy = used.get(row.host) || new Map(); colorOf(row.host); }
  const many = frame.nodes.length > CARDS_MOST, box = byId("nodes");
  byId("node-search").hidden = !many;
  box.className = many ? "heat" : "cards";
  if (many) return showHeat(frame, box);
  const at = Date.now() / 1000;
  const order = work.fine ? work.fine.nodes : [];
  for (const [host, parts] of cards) if (!frame.nodes.some((row) => row.host === host)) { parts.box.remove(); cards.delete(host); }
  if (!frame.nodes.length) { if (!box.querySelector(".empty")) box.replaceChildren(el("p", "empty card", "No nodes. Add one with pool.add_node(…), or name them in SOLLOL_NODES.")); return; }
  box.querySelector(".empty")?.remove();
  for (const tile of [...box.children]) if (!tile.classList.contains("node")) tile.remove();
  frame.nodes.forEach((row) => {
    if (!cards.has(row.host)) { const made = makeCard(row); cards.set(row.host, made); box.append(made.box); }
    fillCard(cards.get(row.host), row, order.indexOf(row.host), at);
  });
}

const heat = new Map();
function showHeat(frame, box) {
  const wanted = byId("node-search").value.toLowerCase();
  for (const [host, parts] of cards) { parts.box.remove(); cards.delete(host); }
  for (const row of frame.nodes) {
    let cell = heat.get(row.host);
    if (!cell) {
      cell = el("button", "cell");
      cell.type = "button";
      cell.addEventListener("click", () => setFilter(`node:${row.host}`));
      heat.set(row.host, cell);
      box.append(cell);
    }
    const slots = Object.values(row.slots).reduce((a, b) => a + b, 0) || 1;
    const load = Math.min(1, row.active_requests / slots);
    const words = `${row.host}: ${row.state}, ${row.active_requests} running${row.loaded.length ? `, ${row.loaded.map((model) => `${model.model} ${model.processor}`).join(", ")}` : ""}${row.why ? `, ${row.why}` : ""}`;
    cell.style.setProperty("--load", load.toFixed(2));
    cell.className = `cell ${row.state}${row.loaded.some((model) => model.processor.includes("CPU")) ? " warn" : ""}`;
    cell.hidden = Boolean(wanted) && !words.toLowerCase().includes(wanted);
    if (cell.title !== words) { cell.title = words; cell.setAttribute("aria-label", words); }
    setText(cell, row.host.split(":")[0].slice(-6));
  }
  for (const [host, cell] of heat) if (!frame.nodes.some((row) => row.host === host)) { cell.remove(); heat.delete(host); }
}

// --- models × nodes ---
function showModels(frame) {
  const models = [...new Set(frame.nodes.flatMap((row) => [...row.models, ...row.loaded.map((model) => model.model)]))].sort();
  const mark = JSON.stringify(frame.nodes.map((row) => [row.host, row.state, row.models, row.loaded.map((model) => [model.model, model.processor]), (row.replicas || []).map((one) => [one.model, one.state])]));
  const box = byId("matrix");
  if (box.mark === mark) return;
  box.mark = mark;
  if (!models.length) { box.replaceChildren(el("p", "empty", "No node has listed a model yet.")); return; }
  const head = el("tr", "", el("th", "", "Model"), ...frame.nodes.map((row) => el("th", row.state === "down" ? "quiet" : "", row.host)));
  const body = models.map((model) => {
    const cells = frame.nodes.map((row) => {
      const known = row.state === "up" && (row.replicas || []).find((one) => one.model === model);
      if (known && ["loading", "slow", "stopping", "stuck", "kept away"].includes(known.state)) {
        const cell = el("td", known.state === "loading" ? "warm" : "warm warn", known.state, el("small", "", ` by ${known.source}`));
        cell.title = known.why;
        return cell;
      }
      const held = row.state === "up" && row.loaded.find((one) => one.model === model);
      if (held) return el("td", held.processor.includes("CPU") ? "warm warn" : "warm", held.processor, el("small", "", held.size ? ` ${size(held.size)}` : ""));
      return el("td", "quiet", row.state === "down" ? "" : row.models.includes(model) ? "○" : "–");
    });
    const name = el("th", "name", model);
    name.scope = "row";
    return el("tr", "", name, ...cells);
  });
  for (const cell of head.children) cell.scope = "col";
  const table = el("table", "", el("thead", "", head), el("tbody", "", ...body));
  table.setAttribute("aria-labelledby", "models-title");
  box.replaceChildren(table);
}
