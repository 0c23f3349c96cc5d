// --- work over time: columns from the server, extended by the newest intervals of each frame ---
const METRICS = { requests: "requests/s", tokens: "tokens/s", items: "items/s", errors: "errors/s" };
const SPANS = { "5m": "5 min", "1h": "1 h", "1d": "1 day", "30d": "30 days" };
const SECONDS = { "5m": 300, "1h": 3600, "1d": 86400, "30d": 2592000 };
const NODES_DRAWN = 11; // the others are one area
const PER_NODE = ["requests", "tokens", "items", "errors"];
const PER_INTERVAL = ["at", "failed", "waiting", "running", "first_token_p50_s", "first_token_p95_s"];

const darkScheme = matchMedia("(prefers-color-scheme: dark)");
const work = { fine: null, coarse: null, plot: null, drawn: "" };

async function readSeries(span) {
  const answer = await fetch(`api/series/${span}`);
  return answer.ok ? answer.json() : null;
}

function extend(series, latest, most) {
  if (!series || series.nodes.join() !== latest.nodes.join()) return false;
  latest.at.forEach((at, place) => {
    let where = series.at.indexOf(at);
    if (where < 0 && series.at.length && at < series.at[series.at.length - 1]) return;
    if (where < 0) where = series.at.length;
    for (const name of PER_INTERVAL) series[name][where] = latest[name][place];
    for (const name of PER_NODE) latest.nodes.forEach((_, node) => { series[name][node][where] = latest[name][node][place]; });
  });
  const over = series.at.length - most;
  if (over > 0) {
    for (const name of PER_INTERVAL) series[name].splice(0, over);
    for (const name of PER_NODE) for (const row of series[name]) row.splice(0, over);
  }
  return true;
}

const totalOf = (series, metric) => series.at.map((_, place) => series[metric].reduce((sum, row) => sum + (row[place] || 0), 0));

async function updateWork(frame) {
  if (!frame.latest) return;
  if (!extend(work.fine, frame.latest, 150) && !work.reading) {
    work.reading = true;
    try { work.fine = await readSeries("5m"); } finally { work.reading = false; }
  }
  if (view.span !== "5m" && (!work.coarse || work.coarse.span !== view.span || Date.now() - work.coarse.read > 15000) && !work.readingCoarse) {
    work.readingCoarse = true;
    try {
      const found = await readSeries(view.span);
      if (found) work.coarse = { ...found, span: view.span, read: Date.now() };
    } finally { work.readingCoarse = false; }
  }
  drawChart(frame);
}

function stacked(series, metric) {
  const order = series.nodes.map((node, place) => [node, series[metric][place], series[metric][place].reduce((a, b) => a + (b || 0), 0)]);
  const byWork = [...order].sort((a, b) => b[2] - a[2]);
  const drawn = new Set(byWork.slice(0, NODES_DRAWN).map(([node]) => node));
  const layers = order.filter(([node]) => drawn.has(node)).map(([node, row]) => ({ name: node, row, color: colorOf(node) }));
  const rest = order.filter(([node]) => !drawn.has(node));
  if (rest.length) layers.push({ name: `${rest.length} others`, row: series.at.map((_, p) => rest.reduce((sum, [, row]) => sum + (row[p] || 0), 0)), color: "#8a938f" });
  let below = series.at.map(() => 0);
  for (const layer of layers) layer.top = below = below.map((value, place) => value + (layer.row[place] || 0));
  return layers.reverse(); // the highest first, so that the lower ones are drawn over it
}

// Lines where a node died or came.
const markers = {
  events: [],
  hooks: { draw: [(plot) => {
    const context = plot.ctx, ratio = devicePixelRatio;
    for (const event of markers.events) {
      if (!["node-up", "node-down"].includes(event.kind)) continue;
      const x = plot.valToPos(event.at, "x", true);
      if (x < plot.bbox.left || x > plot.bbox.left + plot.bbox.width) continue;
      context.strokeStyle = event.kind === "node-down" ? "#c23a33" : "#2a8a5f";
      context.lineWidth = 1.5 * ratio;
      context.setLineDash(event.kind === "node-down" ? [] : [4 * ratio, 3 * ratio]);
      context.beginPath();
      context.moveTo(x, plot.bbox.top);
      context.lineTo(x, plot.bbox.top + plot.bbox.height);
      context.stroke();
      context.setLineDash([]);
    }
  }] },
};

const when = (at) => (view.span === "30d" ? new Date(at * 1000).toLocaleDateString([], { day: "2-digit", month: "short" }) : clock(new Date(at * 1000), view.span === "5m" ? "2-digit" : undefined));

function drawChart(frame) {
  const series = view.span === "5m" ? work.fine : work.coarse && work.coarse.span === view.span ? work.coarse : null;
  const box = byId("chart");
  if (!series || !box.clientWidth) return;
  markers.events = frame.events || [];
  const layers = stacked(series, view.metric);
  const data = [series.at, ...layers.map((layer) => layer.top)];
  const key = [view.metric, view.span, document.documentElement.dataset.theme, darkScheme.matches, ...layers.map((layer) => layer.name)].join();
  work.layers = layers;
  if (work.plot && work.drawn === key) { work.plot.setData(data); return; }
  if (work.plot) work.plot.destroy();
  work.drawn = key;
  const style = getComputedStyle(document.documentElement);
  const ink = style.getPropertyValue("--soft").trim(), line = style.getPropertyValue("--line").trim();
  const axis = { stroke: ink, grid: { stroke: line, width: 1 }, ticks: { stroke: line, width: 1 }, font: "11px system-ui" };
  work.plot = new uPlot({
    width: box.clientWidth, height: box.clientHeight - 30, plugins: [markers],
    scales: { x: { range: (_, low, high) => [high - SECONDS[view.span], high] }, y: { range: (_, low, high) => [0, Math.max(1, high * 1.1)] } },
    axes: [{ ...axis, space: 80, values: (_, ticks) => ticks.map((tick) => when(tick)) }, { ...axis, size: 52, values: (_, ticks) => ticks.map((tick) => rate(tick)) }],
    cursor: { points: { show: false }, y: false },
    bands: layers.slice(1).map((_, place) => ({ series: [place + 1, place + 2] })),
    series: [
      { label: "At", value: (_, at) => (at === null || at === undefined ? "now" : when(at)) },
      ...layers.map((layer) => ({
        label: layer.name, stroke: layer.color, fill: `${layer.color}99`, width: 1,
        points: { show: false }, paths: uPlot.paths.stepped({ align: 1 }),
        value: (plot, _, number, place) => rate(work.layers[number - 1]?.row[place ?? series.at.length - 2] || 0),
      })),
    ],
  }, data, box);
}

function choices(id, names, chosen, choose) {
  const box = byId(id);
  const mark = Object.keys(names).join() + chosen;
  if (box.mark === mark) return;
  box.mark = mark;
  box.replaceChildren(...Object.entries(names).map(([name, label]) => {
    const button = el("button", "", label);
    button.type = "button";
    button.setAttribute("aria-pressed", String(name === chosen));
    button.addEventListener("click", () => choose(name));
    return button;
  }));
}

// --- tiles with sparklines of five minutes; their places are fixed ---
const TILES = [
  { name: "Nodes up" }, { name: "Requests/s" }, { name: "Tokens/s" }, { name: "Items/s" },
  { name: "First token" }, { name: "Waiting" }, { name: "Failed" }, { name: "Of predicted time" },
];
const OF_ALL = ["Requests/s", "Tokens/s", "Items/s", "First token"]; // from the series, which one application does not have
const tileParts = TILES.map(({ name }) => {
  const value = el("dd"), more = el("small"), line = svg("svg", { viewBox: "0 0 100 24", preserveAspectRatio: "none", "aria-hidden": "true" }, "spark");
  const path = svg("polyline", { fill: "none", points: "" });
  line.append(path);
  const box = el("div", `${name === "Nodes up" ? "" : "of-requests"} ${OF_ALL.includes(name) ? "of-all" : ""}`, el("dt", "", name), value, el("dd", "more", more), line);
  byId("tiles").append(box);
  return { value, more, path };
});

function spark(path, values) {
  const known = values.map((value) => value ?? 0), high = Math.max(...known, 1e-9);
  const points = known.map((value, place) => `${((100 * place) / Math.max(1, known.length - 1)).toFixed(1)},${(23 - (21 * value) / high).toFixed(1)}`).join(" ");
  if (path.getAttribute("points") !== points) path.setAttribute("points", points);
}

function showTiles(frame) {
  const up = frame.nodes.filter((node) => node.state === "up").length, series = work.fine;
  const last = (values) => { const known = values.filter((value) => value !== null); return known.length ? known[known.length - 1] : null; };
  const settled = (values) => (values.length > 1 ? values[values.length - 2] : values[0] || 0); // the newest interval still grows
  const rows = [[`${up} of ${frame.nodes.length}`, frame.watching ? `${count(frame.nodes.flatMap((node) => node.loaded).length)} models in memory` : `${count(frame.running.length)} calls running`, null]];
  for (const metric of ["requests", "tokens", "items"]) {
    const values = series ? totalOf(series, metric) : [];
    rows.push([rate(settled(values)), metric === "requests" ? `${count(frame.totals.total_requests)} in all` : "", values]);
  }
  const first = series ? series.first_token_p50_s : [], slow = series ? series.first_token_p95_s : [];
  rows.push([last(first) === null ? "–" : time(1000 * last(first)), last(slow) === null ? "" : `p95 ${time(1000 * last(slow))}`, first]);
  const eta = Math.max(0, ...frame.waiting.map((row) => row.eta_ms));
  rows.push([count(frame.waiting.length), frame.waiting.length ? `the last starts in ${time(eta)}` : "", series ? series.waiting : []]);
  const failed = series ? series.failed.reduce((a, b) => a + b, 0) : 0;
  const total = frame.totals.failed_requests;
  rows.push(frame.own ? [count(total), `of ${count(frame.totals.total_requests)} requests`, null] : [count(failed), `in 5 min; ${count(total)} in all`, series ? series.failed : []]);
  const { median, p90, count: known } = frame.calibration;
  rows.push([known ? times(median) : "–", known ? `p90 ${times(p90)}` : "", null]);
  rows.forEach(([value, more, values], place) => {
    setText(tileParts[place].value, value);
    setText(tileParts[place].more, more);
    if (values) spark(tileParts[place].path, values);
  });
}
