// The picture: read, drawn by the service where the browser cannot, and painted.

import { ask, Problem } from "./service.js";

const CANVAS_PX = 900;

// The file's content, held here: its file may be moved or deleted before the last question about it is asked.
export async function read(file) {
  if (file.size === 0) {
    const detail = `The file ${file.name} has no bytes; it may not have been saved or copied to its end.`;
    throw new Problem({ code: "empty", title: "The file is empty", detail, advice: "Choose another." });
  }
  try {
    const type = file.type.startsWith("image/") ? file.type : ""; // x.json with a picture in it is no JSON
    return new File([await file.arrayBuffer()], file.name, { type });
  } catch {
    throw new Problem({
      code: "unreadable",
      title: "The file cannot be read",
      detail: `The file ${file.name} was moved, deleted or changed, may not be read, or is too large for this browser.`,
      advice: "Choose it again.",
    });
  }
}

// Every browser turns a JPEG as its EXIF note says; others not all, Chromium no WebP, whatever the file is called.
export async function turnedByAll(file, { image }) {
  const [first, second] = new Uint8Array(await file.slice(0, 2).arrayBuffer());
  return image.orientation === 1 || (first === 0xff && second === 0xd8);
}

// What this browser cannot show, such as TIFF, or might not turn upright: the service draws it.
export async function drawnByService(file, found, signal) {
  const row = found.results.find((one) => !one.error);
  const path = `v1/models/${encodeURIComponent(row.model)}/explain?opacity=0&side=1024`;
  const blob = (response) => response.blob();
  return createImageBitmap(await ask(path, { body: file, accept: "image/png", as: blob, signal }));
}

export function paint(canvas, picture) {
  const scale = CANVAS_PX / Math.max(picture.width, picture.height);
  canvas.width = Math.max(1, Math.round(picture.width * scale));
  canvas.height = Math.max(1, Math.round(picture.height * scale));
  const pen = canvas.getContext("2d");
  pen.imageSmoothingEnabled = scale < 4; // a tiny picture is shown as it is, not blurred
  pen.fillStyle = "#fff"; // what is see-through was laid on white, as the network saw it; black on a dark page is nothing
  pen.fillRect(0, 0, canvas.width, canvas.height);
  pen.drawImage(picture, 0, 0, canvas.width, canvas.height);
  return pen;
}

export function isCropped({ upright: { width, height, crop } }) {
  return crop.left > 0.5 || crop.top > 0.5 || crop.right < width - 0.5 || crop.bottom < height - 0.5;
}
