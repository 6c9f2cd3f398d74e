// Asks the service, again where waiting helps, and with a key where it wants one.

import { at } from "./dom.js";
import { askForKey, heldKey } from "./key.js";
import { show } from "./notice.js";

const TRIES = 8;
const LONGEST_PAUSE_S = 15;

export class Problem extends Error {
  constructor({ code, title, detail, advice = "", again = false }) {
    super(detail);
    Object.assign(this, { code, title, detail, advice, again });
  }
}

const json = (response) => response.json();

export async function ask(path, { body, accept = "application/json", as = json, signal } = {}) {
  for (let attempt = 1; ; attempt++) {
    let problem;
    let pause_s = 2 ** (attempt - 1);
    try {
      const headers = { Accept: accept };
      if (heldKey()) headers.Authorization = `Bearer ${heldKey()}`;
      if (body) headers["Content-Type"] = body.type || "application/octet-stream";
      const response = await fetch(path, { method: body ? "POST" : "GET", body, headers, signal, cache: "no-store" });
      if (response.ok) return await as(response); // here, as it may be cut off in its midst
      problem = await problemOf(response);
      if (problem.code === "unauthorized") {
        await askForKey(problem, signal);
        attempt = 0;
        continue;
      }
      const asked_s = Number(response.headers.get("Retry-After") ?? NaN);
      if (Number.isNaN(asked_s)) throw problem;
      pause_s = Math.max(asked_s, pause_s);
    } catch (error) {
      if (error instanceof Problem || signal?.aborted) throw error;
      problem = unreachable(body);
    }
    if (attempt >= TRIES) throw problem;
    await patience(problem, Math.min(pause_s, LONGEST_PAUSE_S) + Math.random() / 2, attempt, signal);
  }
}

async function problemOf(response) {
  const told = await response.json().catch(() => ({}));
  return new Problem({
    code: told.code ?? String(response.status),
    title: told.title ?? "The service answered with an error",
    detail: told.detail ?? `It answered with status ${response.status}.`,
    advice: told.advice,
    again: [401, 429].includes(response.status) || response.status >= 500, // a photo need not be taken again for a key
  });
}

function unreachable(body) {
  const large = body && body.size > 16 * 2 ** 20;
  return new Problem({
    code: "unreachable",
    title: "The service cannot be reached",
    detail: large
      ? `The picture has ${Math.round(body.size / 2 ** 20)} MiB, which may be more than the service takes.`
      : "This page was loaded, but the service behind it does not answer now.",
    advice: large ? "Try a smaller one." : "If you run it yourself, look at the output of `eca-serve up`.",
    again: true,
  });
}

async function patience(problem, pause_s, attempt, signal) {
  const busy = problem.code === "overloaded" || problem.code === "rate_limited";
  show({
    kind: "wait",
    title: busy ? "The service is busy" : problem.title,
    text: busy ? "Others are being answered. Your picture keeps its place here, nothing is lost." : problem.detail,
    stop: true,
  });
  const end = performance.now() + 1000 * pause_s;
  for (let left = pause_s; left > 0; left = (end - performance.now()) / 1000) {
    at("notice-count").textContent = `Trying again in ${Math.ceil(left)} s, try ${attempt + 1} of ${TRIES}.`;
    await new Promise((resolve) => setTimeout(resolve, Math.min(250, 1000 * left)));
    signal?.throwIfAborted();
  }
  at("notice-count").textContent = "Trying again …";
}
