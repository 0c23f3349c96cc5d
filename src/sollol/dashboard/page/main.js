// --- one frame ---
let frame = null;

function show(next) {
  frame = next;
  canAct = Boolean(frame.can_act);
  byId("logout").hidden = !frame.login;
  byId("tabs").lastElementChild.hidden = !frame.has_settings;
  const how = [frame.app_name, frame.routing_mode && `mode ${frame.routing_mode}`, frame.routing_strategy && `strategy ${frame.routing_strategy}`, `version ${frame.version}`];
  setText(byId("who"), how.filter(Boolean).join(" · "));
  document.title = `${frame.verdict.severity === "ok" ? "" : "! "}${frame.app_name ? `${frame.app_name} – ` : ""}SOLLOL`;
  document.body.classList.toggle("watching", Boolean(frame.watching));
  document.body.classList.toggle("own", Boolean(frame.own)); // one application's view
  notice(frame.watching ? "The nodes are watched from outside: requests that programs send to them are not seen here. A program shows its own with run_unified_dashboard(pool)." : "");
  showVerdict();
  showNodes(frame);
  showTiles(frame);
  if (view.tab === "models") showModels(frame);
  if (view.tab === "settings") showMode(frame);
  if (view.tab === "calibration") showCalibration(frame);
  if (view.tab === "overview") {
    showEvents();
    showRequests();
    showApplications();
    drawLanes(frame);
    choices("span", Object.fromEntries(Object.entries(SPANS).filter(([name]) => frame.spans.includes(name))), view.span, (span) => { remember({ span }); work.drawn = ""; show(frame); });
    choices("metric", METRICS, view.metric, (metric) => { remember({ metric }); work.drawn = ""; show(frame); });
    updateWork(frame);
  }
}

function showVerdict() {
  byId("verdict").dataset.severity = frame.verdict.severity;
  setText(byId("verdict-text"), frame.verdict.text);
  const mark = JSON.stringify(frame.findings.map((one) => [one.id, one.subject, one.summary]));
  const list = byId("findings");
  byId("verdict-line").disabled = !frame.findings.length;
  if (!frame.findings.length) openFindings(false);
  if (list.mark === mark) return;
  list.mark = mark;
  list.replaceChildren(...frame.findings.map((one) => el("li", one.severity, el("strong", "", one.summary), el("p", "", one.cost), el("p", "fix", el("b", "", "Fix: "), ...withCode(one.fix)))));
}

function openFindings(open) {
  byId("findings").hidden = !open;
  byId("verdict-line").setAttribute("aria-expanded", String(open));
}
byId("verdict-line").addEventListener("click", () => openFindings(byId("findings").hidden));

function showEvents() {
  const list = byId("events"), mark = frame.events.length ? `${frame.events[0].at}${frame.events.length}` : "none";
  if (list.mark === mark) return;
  list.mark = mark;
  list.replaceChildren(...(frame.events.length ? frame.events.map((event) => {
    const when = el("time", "", clock(new Date(event.at * 1000), "2-digit"));
    return el("li", event.severity, when, " ", event.text);
  }) : [el("li", "quiet", "Nothing has changed yet.")]));
}

function showRequests() {
  const wanted = matcher(view.filter);
  tables.running.show(frame.running.filter(wanted), (row) => `${row.id} ${row.attempt}`);
  tables.waiting.show(frame.waiting.filter(wanted), (row) => row.id);
  tables.recent.show(frame.recent.filter(wanted), (row) => row.id);
}

function showApplications() {
  const shared = frame.applications;
  byId("applications-section").hidden = !shared;
  if (!shared) return;
  const lost = shared.lost ? `${count(shared.lost)} records of this program were lost` : "";
  const state = shared.connected ? `by ${shared.redis}` : `${shared.redis} does not answer: ${shared.problem || "no connection yet"}`;
  const old = !shared.connected && shared.age_s !== null ? `as it was ${ago(shared.age_s)}` : "";
  setText(byId("applications-state"), [state, old, lost].filter(Boolean).join(" · "));
  tables.applications.show(Object.entries(shared.apps).map(([app, sums]) => ({ app, ...sums })), (row) => row.app);
}

function notice(text) {
  setText(byId("notice"), text);
  byId("notice").hidden = !text;
}

function setFilter(text) {
  for (const box of ["filter", "history-filter"]) if (byId(box).value !== text) byId(box).value = text;
  remember({ filter: text });
  if (frame) show(frame);
}
for (const box of ["filter", "history-filter"]) byId(box).value = view.filter;
byId("filter").addEventListener("input", (event) => setFilter(event.target.value));
byId("node-search").addEventListener("input", () => { if (frame) showNodes(frame); });

// --- views ---
function openTab(tab) {
  remember({ tab });
  for (const part of document.querySelectorAll("[data-view]")) part.hidden = part.dataset.view !== tab;
  for (const button of byId("tabs").children) button.setAttribute("aria-selected", String(button.dataset.tab === tab));
  if (tab === "history") showHistory(false);
  if (tab === "settings") showSettings();
  if (frame) show(frame);
}
for (const button of byId("tabs").children) button.addEventListener("click", () => openTab(button.dataset.tab));

const stored = (() => { try { return localStorage.getItem("sollol-theme"); } catch { return null; } })();
if (stored) document.documentElement.dataset.theme = stored;
byId("theme").addEventListener("click", () => {
  const dark = document.documentElement.dataset.theme ? document.documentElement.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
  document.documentElement.dataset.theme = dark ? "light" : "dark";
  try { localStorage.setItem("sollol-theme", document.documentElement.dataset.theme); } catch { /* a private window */ }
  if (frame) show(frame);
});

new ResizeObserver(() => {
  if (work.plot) work.plot.setSize({ width: byId("chart").clientWidth, height: byId("chart").clientHeight - 30 });
  if (frame && view.tab === "overview") drawLanes(frame);
}).observe(byId("chart"));

addEventListener("scroll", () => requestAnimationFrame(() => { if (frame && view.tab === "overview") drawLanes(frame); }), { passive: true });

// --- keyboard ---
document.addEventListener("keydown", (event) => {
  const typing = ["INPUT", "TEXTAREA"].includes(event.target.tagName);
  if (event.ctrlKey || event.metaKey || event.altKey || document.querySelector("dialog[open]")) return;
  if (typing) { if (event.key === "Escape") { event.target.value = ""; event.target.dispatchEvent(new Event("input")); event.target.blur(); } return; }
  if (event.key === "/") { if (view.tab !== "history") openTab("overview"); byId(view.tab === "history" ? "history-filter" : "filter").focus(); } else if (event.key === "?") byId("help").showModal();
  else if (event.key === "p") byId("pause").click();
  else if (/^[1-5]$/.test(event.key) && !byId("tabs").children[event.key - 1].hidden) openTab(byId("tabs").children[event.key - 1].dataset.tab);
  else if (["ArrowDown", "ArrowUp"].includes(event.key) && event.target.classList.contains("call")) {
    const all = [...event.target.closest("table").querySelectorAll(".call")];
    all[all.indexOf(event.target) + (event.key === "ArrowDown" ? 1 : -1)]?.focus();
  } else return;
  event.preventDefault();
});
byId("help-open").addEventListener("click", () => byId("help").showModal());

// --- the feed ---
let source = null, latest = 0, paused = false;

function setStatus(kind, text) {
  setText(byId("status"), text);
  byId("status").dataset.state = kind;
  document.body.classList.toggle("stale", kind === "lost");
}

function listen() {
  if (source || paused || document.hidden) return;
  source = new EventSource("api/events");
  source.addEventListener("snapshot", (event) => {
    latest = Date.now();
    setStatus("live", "Live");
    show(JSON.parse(event.data));
  });
  source.addEventListener("trouble", (event) => {
    latest = Date.now();
    setStatus("lost", JSON.parse(event.data).error);
  });
  source.addEventListener("error", () => {
    setStatus("lost", latest ? `No connection since ${clock(new Date(latest), "2-digit")}; trying again` : "No connection; trying again");
    if (source && source.readyState === EventSource.CLOSED) { silence(); setTimeout(again, 3000); }
  });
}

async function again() {
  try {
    if ((await fetch("api/snapshot")).status === 401) { location.reload(); return; } // the session has ended
  } catch { /* the server is away */ }
  listen();
}

function silence() {
  if (source) source.close();
  source = null;
}

byId("pause").addEventListener("click", () => {
  paused = !paused;
  byId("pause").textContent = paused ? "Go on" : "Pause";
  if (paused) { silence(); setStatus("wait", `Paused at ${clock(new Date(), "2-digit")}`); } else { setStatus("wait", "Connecting"); listen(); }
});
// A hidden page needs no news, and a listener's place is free for others.
document.addEventListener("visibilitychange", () => (document.hidden ? silence() : listen()));
setInterval(() => {
  if (source && source.readyState === EventSource.OPEN && latest && Date.now() - latest > 5000) setStatus("lost", `No news since ${clock(new Date(latest), "2-digit")}`);
}, 1000);
openTab([...byId("tabs").children].some((button) => button.dataset.tab === view.tab) ? view.tab : "overview");
if (/^\d+$/.test(view.call)) explain(view.call);
listen();
