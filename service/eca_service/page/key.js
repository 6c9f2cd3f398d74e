// The key that a service may ask for: typed by the user, kept in this tab.

import { at } from "./dom.js";

const NAME = "eca-key";
let key = inTab((tab) => tab.getItem(NAME)) ?? "";

export const heldKey = () => key;

// A browser may forbid a page to keep anything: the key is then forgotten with the page.
function inTab(use) {
  try {
    return use(sessionStorage);
  } catch {
    return null;
  }
}

function keep(given) {
  key = given;
  inTab((tab) => (key ? tab.setItem(NAME, key) : tab.removeItem(NAME)));
}

export function askForKey(problem, signal) {
  const dialog = at("key-dialog");
  at("key-why").textContent = problem
    ? `The service says: ${problem.detail}. Type a key; it stays in this tab and is forgotten when you close it.`
    : "Where the service asks for a key, type yours here. It stays in this tab and is forgotten when you close it.";
  at("key").value = key;
  dialog.returnValue = "";
  if (!dialog.open) dialog.showModal();
  at("key").select();
  return new Promise((resolve, reject) => {
    dialog.addEventListener(
      "close",
      () => {
        if (dialog.returnValue === "use" && !signal?.aborted) resolve();
        else reject(problem ?? new Error("no key"));
      },
      { once: true },
    );
  });
}

at("key-button").addEventListener("click", () => askForKey(null).catch(() => {}));
at("key-cancel").addEventListener("click", () => at("key-dialog").close());
at("key-forget").addEventListener("click", () => {
  keep("");
  at("key-dialog").close();
});
at("key-form").addEventListener("submit", (event) => {
  event.preventDefault();
  keep(at("key").value.trim());
  at("key-dialog").close("use");
});
