// The review page: one image at a time, a key or a click for each verdict, boxes and a mask by mouse.
"use strict";
const $ = (id) => document.getElementById(id);
const WORDS = { "1": "real defect", "0": "false alarm", "-1": "bad image" };
const LONG_SIDE = 1600;
let items = [], at = 0, tool = "none", drag = null, busy = Promise.resolve();
// What is drawn on the image at hand: boxes in its own pixels, and whether anything is painted.
let boxes = [], painted = false, loaded = true;

const stage = $("stage"), picture = $("picture"), layer = $("layer"), paint = $("paint"), regions = $("regions");
const pen = paint.getContext("2d", { willReadFrequently: true });

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
  const item = items[at];
  $("problem").hidden = true;
  // Never an image under the heatmap, or the facts, of another one.
  for (const image of [picture, layer]) image.removeAttribute("src");
  picture.src = `picture/${at}`;
  layer.src = `layer/${at}`;
  drag = null;
  const scale = Math.min(1, LONG_SIDE / Math.max(item.width, item.height));
  paint.width = Math.max(1, Math.round(item.width * scale));
  paint.height = Math.max(1, Math.round(item.height * scale));
  regions.setAttribute("viewBox", `0 0 ${item.width} ${item.height}`);
  boxes = item.boxes.slice();
  painted = false;
  loaded = !item.mask;
  if (item.mask) repaint(at);
  fit();
  describe();
  // The next one is fetched while this one is looked at.
  if (at + 1 < items.length) { new Image().src = `picture/${at + 1}`; new Image().src = `layer/${at + 1}`; }
}

async function repaint(index) {
  const before = new Image();
  before.src = `mask/${index}?${Date.now()}`;
  try { await before.decode(); } catch { say("the mask of this image cannot be shown; it stays as it is"); return; }
  if (index !== at) return;
  pen.drawImage(before, 0, 0, paint.width, paint.height);
  painted = loaded = true;
}

function fit() {
  const item = items[at], room = stage.parentElement.getBoundingClientRect();
  const scale = Math.min((room.width - 24) / item.width, (room.height - 24) / item.height);
  stage.style.width = `${Math.max(1, item.width * scale)}px`;
  stage.style.height = `${Math.max(1, item.height * scale)}px`;
}

function describe() {
  const item = items[at], done = items.filter((each) => each.label !== null).length;
  $("progress").textContent = `${done} of ${items.length} labelled`;
  $("bar").value = done; $("bar").max = items.length;
  $("rank").textContent = `${at + 1} of ${items.length}`;
  $("state").textContent = item.label === null ? "" : WORDS[item.label];
  $("state").className = `l${item.label}`;
  const changed = item.changed ? " \u00b7 the label is of an earlier version of this image" : "";
  $("facts").textContent = `score ${item.score.toPrecision(4)} \u00b7 p ${item.p_value.toPrecision(3)} \u00b7 ` +
    `${item.is_anomalous ? "alarm" : "no alarm"} \u00b7 ${item.date}${item.group ? ` \u00b7 ${item.group}` : ""} \u00b7 ` +
    `${item.width} x ${item.height}${changed}`;
  $("name").textContent = item.name;
  for (const button of document.querySelectorAll("[data-label]"))
    button.classList.toggle("on", item.label !== null && button.dataset.label === String(item.label));
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

// Verdicts are sent one after the other, in the order they were given.
function verdict(label, move) {
  const index = at, body = { label };
  // Without a drawing in the message the server keeps the one it has.
  if (label === 1 && loaded) {
    body.boxes = boxes.slice();
    if (painted) body.mask = paint.toDataURL("image/png").split(",")[1];
  }
  busy = busy.then(() => send(index, body)).then((kept) => {
    if (kept && move && index === at) onwards();
  });
}

async function send(index, body) {
  let answer;
  try {
    answer = await fetch(`label/${index}`, {
      method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body),
    });
  } catch { say("the review has ended, or is out of reach: nothing was kept"); return false; }
  if (!answer.ok) { say(await answer.text()); return false; }
  say("");
  items[index] = await answer.json();
  if (index === at && body.label !== 1) wipe();
  if (index === at) describe();
  return true;
}

function onwards() {
  const open = items.findIndex((item, index) => index > at && item.label === null);
  if (open >= 0) show(open);
  else {
    const earlier = items.findIndex((item) => item.label === null);
    if (earlier >= 0) show(earlier); else say("every image here has a label");
  }
}

function say(text) { $("message").textContent = text; }

function wipe() { boxes = []; painted = false; loaded = true; pen.clearRect(0, 0, paint.width, paint.height); outline(); }

function erase() {
  wipe();
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

stage.addEventListener("pointerdown", (event) => {
  if (tool === "none" || event.button || !items.length) return;
  event.preventDefault();
  stage.setPointerCapture(event.pointerId);
  drag = { from: place(event), last: place(event), box: null };
  if (tool === "brush") stroke(event);
});
stage.addEventListener("pointermove", (event) => {
  if (!drag) return;
  if (tool === "brush") { stroke(event); return; }
  const item = items[at], [x, y] = place(event), [a, b] = drag.from;
  const box = {
    x0: Math.floor(Math.min(a, x) * item.width), y0: Math.floor(Math.min(b, y) * item.height),
    x1: Math.ceil(Math.max(a, x) * item.width), y1: Math.ceil(Math.max(b, y) * item.height),
  };
  if (drag.box) boxes.pop();
  drag.box = box;
  boxes.push(box);
  outline();
});
for (const name of ["pointerup", "pointercancel"]) stage.addEventListener(name, () => {
  if (!drag) return;
  const drawn = tool === "brush" || drag.box;
  drag = null;
  // Whoever marks a defect says that there is one.
  if (drawn) verdict(1, false);
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
  const index = at, answer = await fetch(`picture/${index}`).catch(() => null);
  if (index !== at || (answer && answer.ok)) return;
  $("problem").textContent = answer ? await answer.text() : "the review has ended, or is out of reach";
  $("problem").hidden = false;
});
layer.addEventListener("error", async () => {
  const index = at, answer = await fetch(`layer/${index}`).catch(() => null);
  if (index === at && answer && !answer.ok) say(await answer.text());
});

for (const button of document.querySelectorAll("[data-label]"))
  button.addEventListener("click", () => verdict(JSON.parse(button.dataset.label), button.dataset.label !== "null"));
$("previous").addEventListener("click", () => show(at - 1));
$("next").addEventListener("click", () => show(at + 1));
$("unlabelled").addEventListener("click", onwards);
$("erase").addEventListener("click", erase);
for (const [id, kind] of [["heat", "heat"], ["boxes", "boxes"]])
  $(id).addEventListener("change", () => stage.classList.toggle(kind, $(id).checked));
for (const radio of document.querySelectorAll("[name=tool]")) radio.addEventListener("change", () => choose(radio.value));
// Once the brush has its width, the keys are for the images again.
$("size").addEventListener("change", () => $("size").blur());
window.addEventListener("resize", () => { if (items.length) fit(); });

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
