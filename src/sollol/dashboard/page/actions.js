// --- actions: only where the server says that this page may act, each with a confirmation ---
let canAct = false;

function actButton(label, words, path, body, danger) {
  if (!canAct) return null;
  const button = el("button", danger ? "action danger" : "action", label);
  button.type = "button";
  button.setAttribute("aria-label", words);
  button.addEventListener("click", () => confirmed(words, path, body));
  return button;
}

function confirmed(words, path, body) {
  const dialog = byId("confirm");
  setText(byId("confirm-words"), `${words}?`);
  setText(byId("confirm-problem"), "");
  byId("confirm-yes").onclick = async () => {
    try {
      const answer = await fetch(path, { method: "POST", body: body ? JSON.stringify(body) : undefined });
      if (answer.ok) { dialog.close(); return; }
      const found = await answer.json();
      setText(byId("confirm-problem"), found.error?.message || found.error || `The gateway answers ${answer.status}.`);
    } catch (error) {
      setText(byId("confirm-problem"), error.message);
    }
  };
  dialog.showModal();
}
byId("confirm-no").addEventListener("click", () => byId("confirm").close());
byId("logout").addEventListener("click", async () => { await fetch("logout", { method: "POST" }); location.reload(); });
