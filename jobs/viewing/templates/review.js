// The review page: one image at a time, a key or a click for each verdict, boxes and a mask by mouse.
"use strict";
const $ = (id) => document.getElementById(id);
const WORDS = { "1": "real defect", "0": "false alarm", "-1": "bad image" };
const LONG_SIDE = 1600;
// Verdicts that could not be kept (number of the image -> message to the server), and how many are on their way.
const unsaved = new Map();
const sending = new Map();
let items = [], at = 0, tool = "none", drag = null, queue = Promise.resolve();
// The drawing on the image at hand: all its boxes (in its pixels), new paint, and whether the old one was cleared.
let boxes = [], painted = false, cleared = false, changed = false, drawnHere = false;

const stage = $("stage"), picture = $("picture"), layer = $("layer"), mask = $("mask"), paint = $("paint");
const regions = $("regions"), pen = paint.getContext("2d", { willReadFrequently: true });

async function start() {
  const answer = await fetch("items");
  if (!answer.ok) { say(await answer.text()); return; }
  items = await answer.json();
  const first = items.findIndex((item) => item.label === null);
  show(first < 0 ? 0 : first);
}

function show(index) {
  if (!items.length) return;
  at = Math.max(0, Math.min(items.length - 1, index));
  const item = items[at], kept = unsaved.get(at);
  drag = null;
  $("problem").hidden = true;
  // Never an image under the heatmap, or the facts, of another one.
  for (const image of [picture, layer, mask]) image.removeAttribute("src");
  picture.src = `picture/${at}`;
  layer.src = `layer/${at}`;
  const scale = Math.min(1, LONG_SIDE / Math.max(item.width, item.height));
  paint.width = Math.max(1, Math.round(item.width * scale));
  paint.height = Math.max(1, Math.round(item.height * scale));
  regions.setAttribute("viewBox", `0 0 ${item.width} ${item.height}`);
  boxes = (kept?.boxes ?? item.boxes).slice();
  painted = changed = drawnHere = false;
  cleared = Boolean(kept?.clear);
  if (kept?.mask) repaint(at, kept.mask);
  showMask();
  fit();
  describe();
  // The next one is fetched while this one is looked at.
  if (at + 1 < items.length) { new Image().src = `picture/${at + 1}`; new Image().src = `layer/${at + 1}`; }
}

function showMask() {
  const item = items[at];
  if (item.mask && !cleared) mask.src = `mask/${at}?${encodeURIComponent(item.seen)}`;
  else mask.removeAttribute("src");
}

async function repaint(index, png) {
  const before = new Image();
  before.src = `data:image/png;base64,${png}`;
  await before.decode();
  if (index !== at) return;
  pen.drawImage(before, 0, 0);
  painted = true;
}

function fit() {
  const item = items[at], room = stage.parentElement.getBoundingClientRect();
  const scale = Math.min((room.width - 24) / item.width, (room.height - 24) / item.height);
  stage.style.width = `${Math.max(1, item.width * scale)}px`;
  stage.style.height = `${Math.max(1, item.height * scale)}px`;
}

function describe() {
  const item = items[at], kept = (each, index) => each.label !== null && !unsaved.has(index) && !sending.has(index);
  const done = items.filter(kept).length;
  $("progress").textContent = `${done} of ${items.length} labelled${done === items.length ? ": that is all" : ""}`;
  $("bar").value = done; $("bar").max = items.length;
  $("rank").textContent = `${at + 1} of ${items.length}`;
  $("state").textContent = item.label === null ? "" : WORDS[item.label];
  $("state").className = `l${item.label}`;
  const replaced = item.replaced ? " \u00b7 labelled before, but the image was replaced since" : "";
  $("facts").textContent = `score ${item.score.toPrecision(4)} \u00b7 p ${item.p_value.toPrecision(3)} \u00b7 ` +
    `${item.is_anomalous ? "alarm" : "no alarm"} \u00b7 ${item.date}${item.group ? ` \u00b7 ${item.group}` : ""} \u00b7 ` +
    `${item.width} x ${item.height}${replaced}`;
  $("name").textContent = item.name;
  for (const button of document.querySelectorAll("[data-label]"))
    button.classList.toggle("on", item.label !== null && button.dataset.label === String(item.label));
  $("unsaved").hidden = !unsaved.size;
  if (unsaved.size) {
    const numbers = [...unsaved.keys()].map((index) => index + 1).sort((a, b) => a - b);
    $("retry").textContent = `${unsaved.size} not kept (${numbers.slice(0, 8).join(", ")}): try again`;
  }
  outline();
}

function outline() {
  const all = [...items[at].regions.map((box) => [box, ""]), ...boxes.map((box) => [box, "mine"])];
  regions.replaceChildren(...all.map(([box, kind]) => {
    const rect = document.createElementNS("http://www.w3.org/2000/svg", "rect");
    rect.setAttribute("class", kind);
    for (const [name, value] of [["x", box.x0], ["y", box.y0], ["width", box.x1 - box.x0], ["height", box.y1 - box.y0]])
      rect.setAttribute(name, value);
    return rect;
  }));
}

// A verdict is of the image that is shown at this moment, and moves on at once; it is sent after those before it.
function verdict(label, move) {
  if (drag) return;
  const index = at, message = { ...unsaved.get(index), label };
  if (label === null) { delete message.boxes; delete message.mask; message.clear = true; wipe(); }
  else if (changed) {
    message.boxes = boxes.slice();
    if (painted) message.mask = paint.toDataURL("image/png").split(",")[1];
    if (cleared) message.clear = true;
    items[index].boxes = message.boxes;
  }
  changed = false;
  items[index].label = label;
  post(index, message);
  if (move) onwards(); else describe();
}

function post(index, message) {
  unsaved.delete(index);
  sending.set(index, (sending.get(index) ?? 0) + 1);
  queue = queue.then(() => send(index, message)).finally(() => {
    sending.set(index, sending.get(index) - 1);
    if (!sending.get(index)) sending.delete(index);
    describe();
  });
}

async function send(index, latest) {
  // One that failed meanwhile may hold a drawing.
  const message = { ...unsaved.get(index), ...latest };
  unsaved.delete(index);
  let answer, why;
  try {
    answer = await fetch(`label/${index}`, {
      method: "POST", headers: { "Content-Type": "application/json" },
      body: JSON.stringify({ ...message, seen: items[index].seen }),
    });
    if (answer.ok || answer.status === 409) {
      const said = await answer.json(), { label } = items[index];
      // A later verdict of ours on the same image is still on its way: it stays on the screen.
      items[index] = answer.ok && label !== message.label ? { ...said, label } : said;
      if (answer.status === 409) {
        if (index === at) show(at);
        say(`image ${index + 1}: somebody else labelled it meanwhile; this is what they said, label it again to change it`);
      } else {
        if (!unsaved.size) say("");
        // Come back before it was kept: the drawing is shown as it is now.
        if (index === at && !drawnHere) { boxes = items[at].boxes.slice(); showMask(); }
      }
      return;
    }
    why = await answer.text();
  } catch { why = "the review has ended, or is out of reach"; }
  unsaved.set(index, message);
  say(`image ${index + 1} is not kept: ${why}`);
}

function retry() {
  for (const [index, message] of [...unsaved]) post(index, message);
}

function onwards() {
  const open = items.findIndex((item, index) => index > at && item.label === null);
  const earlier = items.findIndex((item) => item.label === null);
  if (open >= 0) show(open);
  else if (earlier >= 0) show(earlier);
  else describe();
}

function say(text) { $("message").textContent = text; }

function wipe() {
  boxes = [];
  painted = false;
  cleared = true;
  pen.clearRect(0, 0, paint.width, paint.height);
  showMask();
  outline();
}

function erase() {
  if (drag) return;
  wipe();
  changed = true;
  if (items[at].label === 1) verdict(1, false);
}

function choose(name) {
  tool = name;
  $(`tool-${name}`).checked = true;
  stage.classList.toggle("drawing", tool !== "none");
}

function place(event) {
  const frame = stage.getBoundingClientRect();
  const inside = (value) => Math.min(1, Math.max(0, value));
  return [inside((event.clientX - frame.left) / frame.width), inside((event.clientY - frame.top) / frame.height)];
}

// The pixels between two places along one side: at least one of them.
function span(a, b, size) {
  const from = Math.min(Math.floor(Math.min(a, b) * size), size - 1);
  return [from, Math.max(Math.ceil(Math.max(a, b) * size), from + 1)];
}

stage.addEventListener("pointerdown", (event) => {
  if (tool === "none" || event.button || !items.length) return;
  event.preventDefault();
  stage.setPointerCapture(event.pointerId);
  drag = { from: place(event), last: place(event), box: null };
  drawnHere = true;
  if (tool === "brush") stroke(event);
});
stage.addEventListener("pointermove", (event) => {
  if (!drag) return;
  if (tool === "brush") { stroke(event); return; }
  const item = items[at], [x, y] = place(event), [a, b] = drag.from;
  const [x0, x1] = span(a, x, item.width), [y0, y1] = span(b, y, item.height);
  if (drag.box) boxes.pop();
  drag.box = { x0, y0, x1, y1 };
  boxes.push(drag.box);
  outline();
});
for (const name of ["pointerup", "pointercancel"]) stage.addEventListener(name, () => {
  if (!drag) return;
  const drawn = tool === "brush" || drag.box;
  drag = null;
  if (!drawn) return;
  changed = true;
  // Whoever marks a defect says that there is one.
  verdict(1, false);
});

function stroke(event) {
  const [x, y] = place(event), [a, b] = drag.last;
  pen.strokeStyle = "#ff2d55";
  pen.lineCap = "round";
  pen.lineWidth = Math.max(1, $("size").value * Math.max(paint.width, paint.height) / 200);
  pen.beginPath();
  pen.moveTo(a * paint.width, b * paint.height);
  pen.lineTo(x * paint.width + 0.01, y * paint.height);
  pen.stroke();
  drag.last = [x, y];
  painted = true;
}

picture.addEventListener("error", async () => {
  if (!picture.hasAttribute("src")) return;
  const index = at, answer = await fetch(`picture/${index}`).catch(() => null);
  if (index !== at || (answer && answer.ok)) return;
  $("problem").textContent = answer ? await answer.text() : "the review has ended, or is out of reach";
  $("problem").hidden = false;
});
layer.addEventListener("error", async () => {
  if (!layer.hasAttribute("src")) return;
  const index = at, answer = await fetch(`layer/${index}`).catch(() => null);
  if (index === at && answer && !answer.ok) say(await answer.text());
});

for (const button of document.querySelectorAll("[data-label]"))
  button.addEventListener("click", () => verdict(JSON.parse(button.dataset.label), button.dataset.label !== "null"));
$("previous").addEventListener("click", () => show(at - 1));
$("next").addEventListener("click", () => show(at + 1));
$("unlabelled").addEventListener("click", onwards);
$("erase").addEventListener("click", erase);
$("retry").addEventListener("click", retry);
for (const [id, kind] of [["heat", "heat"], ["boxes", "boxes"]])
  $(id).addEventListener("change", () => stage.classList.toggle(kind, $(id).checked));
for (const radio of document.querySelectorAll("[name=tool]")) radio.addEventListener("change", () => choose(radio.value));
// Once the brush has its width, the keys are for the images again.
$("size").addEventListener("change", () => $("size").blur());
window.addEventListener("resize", () => { if (items.length) fit(); });
window.addEventListener("beforeunload", (event) => { if (unsaved.size || sending.size) event.preventDefault(); });

const KEYS = {
  d: () => $("defect").click(), f: () => $("false").click(), b: () => $("bad").click(), u: () => $("clear").click(),
  ArrowLeft: () => show(at - 1), k: () => show(at - 1), ArrowRight: () => show(at + 1), j: () => show(at + 1),
  n: onwards, h: () => $("heat").click(), r: () => $("boxes").click(), c: erase,
  x: () => choose(tool === "box" ? "none" : "box"), m: () => choose(tool === "brush" ? "none" : "brush"),
};
document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.altKey || event.metaKey) return;
  const act = KEYS[event.key];
  if (act && items.length) { event.preventDefault(); act(); }
});

start();
