// What the service says of itself: whether it is ready, and what it can tell apart.

import { at } from "./dom.js";
import { state } from "./state.js";
import { listed } from "./words.js";

const STATUS_EVERY_MS = 10000;

export function learn({ models, default: first }) {
  state.first = first;
  state.contracts = new Map(models.map((contract) => [contract.name, contract]));
  return state.contracts.get(first);
}

// What the service can tell apart, before anybody asks; a service that wants a key for it is not pressed.
export async function introduce() {
  const response = await fetch("v1/models", { cache: "no-store" });
  const model = response.ok && learn(await response.json());
  if (!model) return;
  const { labels, classes } = model;
  const some = labels.slice(0, 12).map((label) => label.split(",")[0]);
  at("known").textContent = `It can tell apart ${classes} things${classes > 12 ? ", such as" : ":"} ${listed(some)}.`;
}

export async function status() {
  if (document.hidden) return;
  const shown = at("service");
  const say = (mood, text) => {
    shown.dataset.state = mood;
    if (shown.textContent !== text) shown.textContent = text;
  };
  try {
    const { ready, reasons } = await (await fetch("readyz", { cache: "no-store", signal: AbortSignal.timeout(STATUS_EVERY_MS) })).json();
    const [first] = Object.entries(reasons);
    if (ready) say("ready", "ready");
    else say("not-ready", first ? `not ready: ${first[0]}: ${first[1]}` : "not ready yet");
  } catch {
    say("away", "no answer");
  }
}

document.addEventListener("visibilitychange", status);
setInterval(status, STATUS_EVERY_MS);
