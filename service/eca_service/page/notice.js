// The notice: what went wrong, or is waited for.

import { at } from "./dom.js";

const OWN_FAULT = { title: "This page failed", advice: "Try again, or reload the page.", again: true };

export function show({ kind, title, text, again = false, stop = false }) {
  const notice = at("notice");
  notice.hidden = false;
  notice.dataset.kind = kind;
  if (at("notice-title").textContent !== title) at("notice-title").textContent = title;
  if (at("notice-text").textContent !== text) at("notice-text").textContent = text;
  at("notice-count").textContent = "";
  at("notice-again").hidden = !again;
  at("notice-stop").hidden = !stop;
}

export function hideNotice() {
  at("notice").hidden = true;
  at("notice-title").textContent = "";
  at("notice-text").textContent = "";
}

// What is no Problem is a fault of the page: its console has the rest.
export function tell(error) {
  if (error.detail === undefined) console.error(error);
  const problem = error.detail === undefined ? { ...OWN_FAULT, detail: String(error) } : error;
  const sentence = problem.detail.charAt(0).toUpperCase() + problem.detail.slice(1).replace(/\.?$/, ".");
  show({ kind: "wrong", title: problem.title, text: `${sentence} ${problem.advice}`.trim(), again: problem.again });
}
