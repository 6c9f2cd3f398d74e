// The page: takes a picture, asks the service, shows the answers. It asks its own service alone.

import { present, waitingCard } from "./answers.js";
import { at } from "./dom.js";
import { choose, draw, explainAll } from "./maps.js";
import { hideNotice, show, tell } from "./notice.js";
import { drawnByService, read, turnedByAll } from "./picture.js";
import { ask } from "./service.js";
import { state } from "./state.js";
import { introduce, learn, status } from "./status.js";

async function look(file, given = 1) {
  state.running?.abort();
  const running = (state.running = new AbortController());
  const { signal } = running;
  Object.assign(state, { file, picture: null, cards: [], wanted: null });
  document.body.dataset.given = "";
  const only = given > 1 ? `, the first of ${given}; it takes one at a time` : "";
  at("give-title").textContent = file.name ? `Another picture? This is ${file.name}${only}.` : "Another picture?";
  hideNotice();
  at("answer").hidden = false;
  at("verdict").textContent = "Looking …";
  at("notes").replaceChildren();
  at("controls").hidden = true;
  const reading = read(file);
  const picture = reading.then(createImageBitmap).catch(() => null);
  at("cards").replaceChildren(waitingCard(picture));
  at("cards").dataset.count = 1;
  try {
    const held = await reading;
    signal.throwIfAborted();
    state.file = held;
    const found = await ask("v1/compare?top_k=5", { body: held, signal });
    const known = ({ model, version }) => state.contracts.get(model)?.version === version;
    if (!found.results.every(known)) learn(await ask("v1/models", { signal }));
    const drawn = ((await turnedByAll(held, found)) && (await picture)) || (await drawnByService(held, found, signal));
    signal.throwIfAborted();
    state.picture = drawn;
    hideNotice();
    present(found);
  } catch (error) {
    if (signal.aborted && state.running !== running) return; // another picture took its place
    at("answer").hidden = true;
    if (signal.aborted) show({ kind: "wait", title: "Stopped", text: "Your picture was not answered.", again: true });
    else tell(error);
    return;
  }
  await explainAll(running);
}

function take(files) {
  const [file] = files;
  if (file) look(file, files.length);
  else show({ kind: "wrong", title: "That is not a file", text: "Drop a picture from your computer, or choose one." });
}

for (const [button, input] of [["choose", "file"], ["photograph", "camera"]]) {
  at(button).addEventListener("click", () => at(input).click());
  at(input).addEventListener("change", () => {
    if (at(input).files.length) take(at(input).files);
    at(input).value = ""; // so that the same file can be chosen again
  });
}
let over = 0;
window.addEventListener("dragenter", () => (document.body.dataset.over = ++over));
window.addEventListener("dragleave", () => {
  if (--over <= 0) delete document.body.dataset.over;
});
window.addEventListener("dragover", (event) => event.preventDefault());
window.addEventListener("drop", (event) => {
  event.preventDefault();
  over = 0;
  delete document.body.dataset.over;
  take(event.dataTransfer.files);
});
document.addEventListener("paste", (event) => {
  if (event.clipboardData.files.length) take(event.clipboardData.files);
});
at("wanted").addEventListener("change", () => choose(Number(at("wanted").value)));
at("strength").addEventListener("input", () => state.cards.forEach(draw));
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => state.cards.forEach(draw));
at("notice-again").addEventListener("click", () => look(state.file));
at("notice-stop").addEventListener("click", () => state.running.abort());
status();
introduce().catch(() => {}); // `status` tells
