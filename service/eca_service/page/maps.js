// Class activation maps: asked for, drawn over the picture, told in words.

import { at } from "./dom.js";
import { strips } from "./gates.js";
import { hideNotice, tell } from "./notice.js";
import { isCropped, paint } from "./picture.js";
import { ask, Problem } from "./service.js";
import { state } from "./state.js";
import { percent } from "./words.js";

export async function choose(index) {
  state.wanted = index;
  at("wanted").value = index;
  for (const button of document.querySelectorAll(".bars button")) {
    button.setAttribute("aria-pressed", Number(button.dataset.index) === index);
  }
  if (state.running.signal.aborted) state.running = new AbortController();
  await explainAll(state.running);
}

// A map that cannot be had is told; the answers stay, and the other maps come.
export async function explainAll(running) {
  const all = await Promise.allSettled(state.cards.map((card) => explain(card, running.signal)));
  const failed = all.find(({ status }) => status === "rejected");
  if (!failed || state.running !== running) return; // or another picture took its place
  if (running.signal.aborted) hideNotice();
  else tell(failed.reason);
}

async function explain(card, signal) {
  const index = state.wanted;
  if (!card.maps.has(index)) {
    card.node.dataset.busy = "";
    const gates = card.contract.gates?.length && !card.gates ? "&gates=true" : "";
    const path = `v1/models/${encodeURIComponent(card.row.model)}/explain?class=${index}${gates}`;
    try {
      const found = await ask(path, { body: state.file, signal });
      if (found.version !== card.row.version) throw changed(card.row, found.version);
      card.maps.set(index, found);
      if (found.gates) strips(card, found.gates);
    } finally {
      delete card.node.dataset.busy;
    }
  }
  if (state.wanted !== index) return; // another label was chosen meanwhile
  card.map = card.maps.get(index);
  const { label, score } = card.map.class;
  const place = strongest(card.map.map);
  card.caption.textContent = `What speaks for ${label} (${percent(score)})${place ? `: strongest ${place}` : ""}.`;
  card.canvas.setAttribute("aria-label", `The picture under ${card.node.querySelector("h3").textContent}'s map. ${card.caption.textContent}`);
  draw(card);
  if (state.cards.every((one) => one.map === one.maps.get(index))) hideNotice();
}

const changed = (row, version) =>
  new Problem({
    code: "changed",
    title: "The model has changed",
    detail: `The answer is from ${row.model}'s version ${row.version}, but version ${version} is served now.`,
    advice: "Try again to get its answer.",
    again: true,
  });

// In words where the map's largest value lies; empty where nothing speaks for the class.
function strongest(map) {
  const best = Math.max(...map.flat());
  if (best <= 0) return "";
  const y = map.findIndex((row) => row.includes(best));
  const third = (place, count) => Math.min(2, Math.floor((3 * (place + 0.5)) / count));
  const down = ["at the top", "", "at the bottom"][third(y, map.length)];
  const across = ["on the left", "", "on the right"][third(map[y].indexOf(best), map[y].length)];
  return [down, across].filter(Boolean).join(" ") || "in the middle";
}

export function draw(card) {
  const { width, height, crop } = card.row.upright;
  const canvas = card.canvas;
  const pen = paint(canvas, state.picture);
  const left = (crop.left / width) * canvas.width;
  const top = (crop.top / height) * canvas.height;
  const wide = ((crop.right - crop.left) / width) * canvas.width;
  const high = ((crop.bottom - crop.top) / height) * canvas.height;
  if (card.map) {
    pen.imageSmoothingEnabled = true;
    pen.imageSmoothingQuality = "high";
    pen.globalAlpha = at("strength").value / 100;
    pen.drawImage(coloured(card.map.map), left, top, wide, high);
    pen.globalAlpha = 1;
  }
  if (isCropped(card.row)) {
    pen.fillStyle = getComputedStyle(document.body).backgroundColor;
    pen.globalAlpha = 0.66;
    pen.beginPath();
    pen.rect(0, 0, canvas.width, canvas.height);
    pen.rect(left, top, wide, high);
    pen.fill("evenodd");
    pen.globalAlpha = 1;
    pen.lineWidth = 3;
    pen.strokeStyle = "#fff";
    pen.strokeRect(left + 1.5, top + 1.5, wide - 3, high - 3);
  }
}

// Warm speaks for the class, cool against it; as strong as its share of the largest value.
function coloured(map) {
  const most = Math.max(...map.flat().map(Math.abs)) || 1;
  const small = new OffscreenCanvas(map[0].length, map.length);
  const pen = small.getContext("2d");
  const image = pen.createImageData(small.width, small.height);
  map.flat().forEach((value, place) => {
    image.data.set(value > 0 ? [255, 90, 0] : [0, 90, 255], 4 * place);
    image.data[4 * place + 3] = Math.round((255 * Math.abs(value)) / most);
  });
  pen.putImageData(image, 0, 0);
  return small;
}
