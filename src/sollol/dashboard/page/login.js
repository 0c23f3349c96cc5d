"use strict";
document.getElementById("login").addEventListener("submit", async (event) => {
  event.preventDefault();
  const problem = document.getElementById("problem");
  problem.textContent = "";
  try {
    const answer = await fetch("login", { method: "POST", headers: { Authorization: `Bearer ${document.getElementById("key").value.trim()}` } });
    if (answer.ok) { location.reload(); return; }
    const found = await answer.json();
    problem.textContent = found.error?.message || found.error || `The gateway answers ${answer.status}.`;
  } catch (error) {
    problem.textContent = `The gateway does not answer: ${error.message}`;
  }
});
