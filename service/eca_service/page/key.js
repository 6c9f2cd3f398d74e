// The key that a service may ask for: typed by the user, kept in this tab.

import { at } from "./dom.js";

export function askForKey(problem, signal) {
  const dialog = at("key-dialog");
  at("key-why").textContent = problem
    ? `The service says: ${problem.detail}. Type a key; it stays in this tab and is forgotten when you close it.`
    : "Where the service asks for a key, type yours here. It stays in this tab and is forgotten when you close it.";
  at("key").value = sessionStorage.getItem("eca-key") ?? "";
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
  sessionStorage.removeItem("eca-key");
  at("key-dialog").close();
});
at("key-form").addEventListener("submit", (event) => {
  event.preventDefault();
  sessionStorage.setItem("eca-key", at("key").value.trim());
  at("key-dialog").close("use");
});
