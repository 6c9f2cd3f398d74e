// The notice: what went wrong, or is waited for.

import { at } from "./dom.js";

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

export function tell(problem) {
  const sentence = problem.detail.charAt(0).toUpperCase() + problem.detail.slice(1).replace(/\.?$/, ".");
  show({ kind: "wrong", title: problem.title, text: `${sentence} ${problem.advice}`.trim(), again: problem.again });
}
