// --- history and settings: read when their view is opened, not with each frame ---
async function read(path) {
  const answer = await fetch(path);
  const found = await answer.json();
  if (!answer.ok) throw new Error(found.error?.message || found.error || answer.statusText);
  return found;
}

const past = { rows: [], next: null, asked: 0 };

async function showHistory(older) {
  const asked = (past.asked += 1), before = older && past.next ? `&before=${past.next}` : "";
  setText(byId("history-state"), "Reading the history.");
  let found;
  try {
    found = await read(`api/history?filter=${encodeURIComponent(view.filter)}${before}`);
  } catch (error) {
    setText(byId("history-state"), `The history cannot be read: ${error.message}`);
    return;
  }
  if (asked !== past.asked) return; // a newer filter was typed meanwhile
  past.rows = before ? [...past.rows, ...found.rows] : found.rows;
  past.next = found.next;
  tables.history.show(past.rows, (row) => `${row.id} ${row.at}`);
  byId("history-older").hidden = found.next === null;
  const whence = found.stored ? "of the store" : "of this process; a store keeps more (pool.use_store, or sollol serve)";
  setText(byId("history-state"), `${count(past.rows.length)} ${past.rows.length === 1 ? "request" : "requests"} ${whence}${found.next === null ? "" : ", and older ones"}`);
}
byId("history-older").addEventListener("click", () => showHistory(true));
byId("history-filter").addEventListener("input", (event) => {
  setFilter(event.target.value);
  clearTimeout(past.timer);
  past.timer = setTimeout(() => showHistory(false), 200);
});

const MODES = { "": "no mode", fast: "fast", reliable: "reliable", async: "async" };

function showMode(frame) {
  const chosen = frame.routing_mode || "";
  byId("mode").hidden = !canAct;
  choices("mode", MODES, chosen, (mode) => {
    if (mode !== chosen) confirmed(`Route requests without a mode ${mode ? `in mode ${mode}` : "by the strategy"}`, "api/mode", { mode: mode || null });
  });
}

async function showSettings() {
  try {
    const found = await read("api/settings");
    tables.settings.show(found.settings, (row) => row.name);
    setText(byId("settings-state"), "");
  } catch (error) {
    setText(byId("settings-state"), `The settings cannot be read: ${error.message}`);
  }
}
