// An attention's gates, a stripe a channel.

import { element } from "./dom.js";

const VIRIDIS = [[68, 1, 84], [59, 82, 139], [33, 145, 140], [94, 201, 98], [253, 231, 37]];

export function strips(card, gates) {
  card.gates = gates;
  const rows = gates.map(({ block, values }) => {
    const canvas = element("canvas");
    Object.assign(canvas, { width: values.length, height: 1 });
    const pen = canvas.getContext("2d");
    const image = pen.createImageData(values.length, 1);
    values.forEach((value, place) => image.data.set([...viridis(value), 255], 4 * place));
    pen.putImageData(image, 0, 0);
    const span = `${Math.min(...values).toFixed(2)} to ${Math.max(...values).toFixed(2)}`;
    canvas.setAttribute("role", "img");
    canvas.setAttribute("aria-label", `${values.length} gates of ${block}`);
    const row = element("li");
    row.append(element("span", block), canvas, element("span", span, "range"));
    return row;
  });
  const details = card.node.querySelector(".gates");
  details.querySelector(".strips").replaceChildren(...rows);
  details.open = gates.length <= 8 && innerWidth >= 720; // where it is no long way past them
  details.hidden = false;
}

function viridis(value) {
  const place = Math.min(Math.max(value, 0), 1) * (VIRIDIS.length - 1);
  const step = Math.min(Math.floor(place), VIRIDIS.length - 2);
  return VIRIDIS[step].map((from, part) => Math.round(from + (place - step) * (VIRIDIS[step + 1][part] - from)));
}
