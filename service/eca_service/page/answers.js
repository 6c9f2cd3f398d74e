// The answers: a card for each model, and what they say together.

import { at, element } from "./dom.js";
import { choose, draw } from "./maps.js";
import { isCropped, paint } from "./picture.js";
import { state } from "./state.js";
import { millions, named, NOTES, percent, sureness, verdict } from "./words.js";

const STAGES = { decode: "decoding", queue: "waiting", infer: "network", rest: "the rest" };

export function present(found) {
  const answered = found.results.filter((row) => !row.error);
  const chosen = answered.find((row) => row.model === state.first) ?? answered[0];
  state.wanted = chosen.predictions[0].index;
  at("verdict").textContent = verdict(answered);
  const notes = found.warnings.map((note) => NOTES[note] ?? `${note.replaceAll("_", " ")}.`);
  if (isCropped(chosen)) notes.push("Only the framed part was seen; what is dimmed was cut off.");
  at("notes").replaceChildren(...notes.map((note) => element("li", note)));
  const labels = state.contracts.get(chosen.model).labels;
  at("wanted").replaceChildren(...labels.map((label, index) => new Option(label, index)));
  at("wanted").value = state.wanted;
  at("controls").hidden = false;
  state.cards = [];
  const shown = found.results.map((row) => (row.error ? failedCard(row) : answeredCard(row)));
  at("cards").replaceChildren(...shown);
  at("cards").dataset.count = shown.length;
  state.cards.forEach(draw);
}

export function waitingCard(coming) {
  const card = at("card").content.cloneNode(true).firstElementChild;
  card.dataset.waiting = "";
  card.querySelector(".times").hidden = true;
  const canvas = card.querySelector("canvas");
  canvas.setAttribute("aria-label", "Your picture; the answer is on its way");
  coming.then((picture) => picture && paint(canvas, picture));
  return card;
}

function failedCard(row) {
  const card = element("article", "", "card");
  const header = element("header");
  header.append(element("h3", named(row.attention)), element("p", row.model, "which"));
  card.append(header, element("p", `${row.error.code}: ${row.error.detail}`, "failed hint"));
  return card;
}

function answeredCard(row) {
  const node = at("card").content.cloneNode(true).firstElementChild;
  const part = (selector) => node.querySelector(selector);
  const contract = state.contracts.get(row.model);
  const card = { row, node, contract, canvas: part("canvas"), caption: part("figcaption"), maps: new Map(), map: null };
  node.dataset.model = row.model;
  part("h3").textContent = named(row.attention);
  part(".which").textContent = `${row.model}, version ${row.version} · ${millions(contract.parameters)} M weights`;
  const best = row.predictions[0];
  part(".says").append(element("strong", best.label), ` ${sureness(best.score)}, ${percent(best.score)}`);
  part(".bars").append(...row.predictions.map((one) => bar(one)));
  times(part(".time-bar"), part(".time-words"), row.timing_ms);
  state.cards.push(card);
  return node;
}

function bar({ index, label, score }) {
  const button = element("button");
  button.type = "button";
  button.dataset.index = index;
  button.setAttribute("aria-pressed", index === state.wanted);
  button.title = `Show what speaks for ${label}`;
  const track = element("span", "", "track");
  const fill = element("span", "", "fill");
  fill.style.width = `${100 * score}%`;
  track.append(fill);
  button.append(element("span", label, "label"), track, element("span", percent(score), "score"));
  button.addEventListener("click", () => choose(index));
  const item = element("li");
  item.append(button);
  return item;
}

function times(bars, words, timing) {
  const { total, ...stages } = timing;
  stages.rest = Math.max(0, total - Object.values(stages).reduce((sum, ms) => sum + ms, 0));
  for (const [stage, ms] of Object.entries(stages)) {
    const piece = element("i");
    piece.dataset.stage = stage;
    piece.style.flexGrow = ms / total;
    bars.append(piece);
    const item = element("li", `${STAGES[stage] ?? stage} ${ms.toFixed(1)} ms`);
    item.dataset.stage = stage;
    words.append(item);
  }
  words.append(element("li", `${total.toFixed(1)} ms in all`));
}
