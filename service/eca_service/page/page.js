// The page's one script: takes a picture, asks the service, shows the answers. It asks its own service alone.

const TRIES = 8;
const LONGEST_PAUSE_S = 15;
const STATUS_EVERY_MS = 10000;
const CANVAS_PX = 900;
const NAMES = { none: "Plain", se: "SE", eca: "ECA", cbam: "CBAM" };
const STAGES = { decode: "decoding", queue: "waiting", infer: "network", rest: "the rest" };
const NOTES = {
  exif_rotated: "Turned upright, as its EXIF note says.",
  first_frame: "It is animated: the first frame was used.",
  reduced_to_8_bit: "Its 16 bits a colour were reduced to 8.",
  alpha_on_white: "Its see-through parts were laid on white.",
  converted_cmyk: "Its printing colours (CMYK) were converted.",
  colour_profile_ignored: "Its colour profile was ignored.",
};
const VIRIDIS = [[68, 1, 84], [59, 82, 139], [33, 145, 140], [94, 201, 98], [253, 231, 37]];

const at = (id) => document.getElementById(id);
const state = { contracts: new Map(), file: null, picture: null, cards: [], wanted: null, running: null, first: null };

class Problem extends Error {
  constructor({ code, title, detail, advice = "", again = false }) {
    super(detail);
    Object.assign(this, { code, title, detail, advice, again });
  }
}

// ---- asking the service ------------------------------------------------------------------------------------------

async function ask(path, { body, accept = "application/json", signal } = {}) {
  for (let attempt = 1; ; attempt++) {
    let problem;
    let pause_s = 2 ** (attempt - 1);
    try {
      const headers = { Accept: accept };
      const key = sessionStorage.getItem("eca-key");
      if (key) headers.Authorization = `Bearer ${key}`;
      if (body) headers["Content-Type"] = body.type || "application/octet-stream";
      const response = await fetch(path, { method: body ? "POST" : "GET", body, headers, signal, cache: "no-store" });
      if (response.ok) return response;
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
    again: response.status === 429 || response.status >= 500,
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
    advice: large ? "Try a smaller one." : "If you run it yourself, look into the terminal of `eca-serve up`.",
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

// ---- what went wrong ---------------------------------------------------------------------------------------------

function show({ kind, title, text, again = false, stop = false }) {
  const notice = at("notice");
  notice.hidden = false;
  notice.dataset.kind = kind;
  if (at("notice-title").textContent !== title) at("notice-title").textContent = title;
  if (at("notice-text").textContent !== text) at("notice-text").textContent = text;
  at("notice-count").textContent = "";
  at("notice-again").hidden = !again;
  at("notice-stop").hidden = !stop;
}

function hideNotice() {
  at("notice").hidden = true;
  at("notice-title").textContent = "";
  at("notice-text").textContent = "";
}

function tell(problem) {
  const sentence = problem.detail.charAt(0).toUpperCase() + problem.detail.slice(1).replace(/\.?$/, ".");
  show({ kind: "wrong", title: problem.title, text: `${sentence} ${problem.advice}`.trim(), again: problem.again });
}

function askForKey(problem, signal) {
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

// ---- a picture is given ------------------------------------------------------------------------------------------

async function look(file) {
  state.running?.abort();
  const running = (state.running = new AbortController());
  const { signal } = running;
  Object.assign(state, { file, picture: null, cards: [], wanted: null });
  document.body.dataset.given = "";
  at("give-title").textContent = file.name ? `Another picture? This is ${file.name}.` : "Another picture?";
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
    const found = await (await ask("v1/compare?top_k=5", { body: held, signal })).json();
    if (found.results.some((row) => !state.contracts.has(row.model))) await learnModels(signal);
    state.picture = (await picture) ?? (await drawnByService(found, signal));
    signal.throwIfAborted();
    hideNotice();
    present(found);
    await Promise.all(state.cards.map((card) => explain(card, signal)));
  } catch (error) {
    if (signal.aborted && state.running !== running) return; // another picture took its place
    at("answer").hidden = true;
    if (error instanceof Problem) tell(error);
    else if (signal.aborted) show({ kind: "wait", title: "Stopped", text: "Your picture was not answered.", again: true });
    else throw error;
  }
}

// The file's content, held here: its file may be moved or deleted before the last question about it is asked.
async function read(file) {
  try {
    return new File([await file.arrayBuffer()], file.name, { type: file.type });
  } catch {
    throw new Problem({
      code: "unreadable",
      title: "The file cannot be read",
      detail: `The file ${file.name} was moved, deleted or changed, may not be read, or is too large for this browser.`,
      advice: "Choose it again.",
    });
  }
}

async function learnModels(signal) {
  const { models, default: first } = await (await ask("v1/models", { signal })).json();
  state.first = first;
  state.contracts = new Map(models.map((contract) => [contract.name, contract]));
}

// What the service can tell apart, before anybody asks; a service that wants a key for it is not pressed.
async function introduce() {
  const response = await fetch("v1/models", { cache: "no-store" });
  const { models = [], default: first } = response.ok ? await response.json() : {};
  const model = models.find((one) => one.name === first);
  if (!model) return;
  const { labels, classes } = model;
  const some = labels.slice(0, 12).map((label) => label.split(",")[0]);
  at("known").textContent = `It can tell apart ${classes} things${classes > 12 ? ", such as" : ":"} ${listed(some)}.`;
}

// A format that this browser cannot show, such as TIFF: the service draws it.
async function drawnByService(found, signal) {
  const row = found.results.find((one) => !one.error);
  const path = `v1/models/${encodeURIComponent(row.model)}/explain?opacity=0&side=1024`;
  const answer = await ask(path, { body: state.file, accept: "image/png", signal });
  return createImageBitmap(await answer.blob());
}

// ---- the answers -------------------------------------------------------------------------------------------------

function present(found) {
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

function verdict(rows) {
  const named = (row) => NAMES[row.attention] ?? row.attention.toUpperCase();
  const by = new Map();
  for (const row of rows) {
    const { label } = row.predictions[0];
    by.set(label, [...(by.get(label) ?? []), named(row)]);
  }
  const [label] = by.keys();
  if (rows.length === 1) return `${label}: ${sureness(rows[0].predictions[0].score)}`;
  if (by.size === 1) return `${["", "", "Both", "All three", "All four"][rows.length] ?? "All"} say ${label}`;
  const sides = [...by].map(([said, names]) => `${listed(names)} ${names.length > 1 ? "say" : "says"} ${said}`);
  return `They disagree: ${listed(sides)}`;
}

const listed = (words) => (words.length < 2 ? words.join() : `${words.slice(0, -1).join(", ")} and ${words.at(-1)}`);

function sureness(score) {
  if (score >= 0.95) return "almost certain";
  if (score >= 0.75) return "quite sure";
  if (score >= 0.5) return "more likely than not";
  return score >= 0.3 ? "a guess" : "no idea, really";
}

const percent = (score) => (score < 0.0005 ? "< 0.1 %" : `${(100 * score).toFixed(score > 0.1 ? 0 : 1)} %`);

function isCropped({ upright: { width, height, crop } }) {
  return crop.left > 0.5 || crop.top > 0.5 || crop.right < width - 0.5 || crop.bottom < height - 0.5;
}

function waitingCard(coming) {
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
  card.append(
    element("h3", NAMES[row.attention] ?? row.attention),
    element("p", row.model, "which"),
    element("p", `${row.error.code}: ${row.error.detail}`, "hint"),
  );
  return card;
}

function answeredCard(row) {
  const node = at("card").content.cloneNode(true).firstElementChild;
  const part = (selector) => node.querySelector(selector);
  const contract = state.contracts.get(row.model);
  const card = { row, node, contract, canvas: part("canvas"), caption: part("figcaption"), maps: new Map(), map: null };
  node.dataset.model = row.model;
  part("h3").textContent = NAMES[row.attention] ?? row.attention.toUpperCase();
  part(".which").textContent = `${row.model}, version ${row.version} · ${millions(contract.parameters)} M weights`;
  const best = row.predictions[0];
  part(".says").append(element("strong", best.label), ` ${sureness(best.score)}, ${percent(best.score)}`);
  part(".bars").append(...row.predictions.map((one) => bar(one)));
  times(part(".time-bar"), part(".time-words"), row.timing_ms);
  state.cards.push(card);
  return node;
}

const millions = (count) => (count / 1e6).toFixed(count < 1e7 ? 2 : 1);

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

function element(tag, text = "", kind = "") {
  const made = document.createElement(tag);
  if (text) made.textContent = text;
  if (kind) made.className = kind;
  return made;
}

// ---- maps and gates ----------------------------------------------------------------------------------------------

async function choose(index) {
  state.wanted = index;
  at("wanted").value = index;
  for (const button of document.querySelectorAll(".bars button")) {
    button.setAttribute("aria-pressed", Number(button.dataset.index) === index);
  }
  if (state.running.signal.aborted) state.running = new AbortController();
  const { signal } = state.running;
  try {
    await Promise.all(state.cards.map((card) => explain(card, signal)));
  } catch (error) {
    if (error instanceof Problem) tell(error);
    else if (signal.aborted) hideNotice();
    else throw error;
  }
}

async function explain(card, signal) {
  const index = state.wanted;
  if (!card.maps.has(index)) {
    card.node.dataset.busy = "";
    const gates = card.contract.gates?.length && !card.gates ? "&gates=true" : "";
    const path = `v1/models/${encodeURIComponent(card.row.model)}/explain?class=${index}${gates}`;
    try {
      const found = await (await ask(path, { body: state.file, signal })).json();
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

function paint(canvas, picture) {
  const scale = CANVAS_PX / Math.max(picture.width, picture.height);
  canvas.width = Math.round(picture.width * scale);
  canvas.height = Math.round(picture.height * scale);
  const pen = canvas.getContext("2d");
  pen.imageSmoothingEnabled = scale < 4; // a tiny picture is shown as it is, not blurred
  pen.drawImage(picture, 0, 0, canvas.width, canvas.height);
  return pen;
}

function draw(card) {
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

function strips(card, gates) {
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

// ---- the service's state -----------------------------------------------------------------------------------------

async function status() {
  if (document.hidden) return;
  const shown = at("service");
  const say = (mood, text) => {
    shown.dataset.state = mood;
    if (shown.textContent !== text) shown.textContent = text;
  };
  try {
    const { ready, reasons } = await (await fetch("readyz", { cache: "no-store" })).json();
    const [first] = Object.entries(reasons);
    if (ready) say("ready", "ready");
    else say("not-ready", first ? `not ready: ${first[0]}: ${first[1]}` : "not ready yet");
  } catch {
    say("away", "no answer");
  }
}

// ---- what people do ----------------------------------------------------------------------------------------------

function take(files) {
  const [file] = files;
  if (file) look(file);
  else show({ kind: "wrong", title: "That is no file", text: "Drop a picture from your computer, or choose one." });
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
document.addEventListener("visibilitychange", status);
setInterval(status, STATUS_EVERY_MS);
status();
introduce().catch(() => {}); // `status` tells
