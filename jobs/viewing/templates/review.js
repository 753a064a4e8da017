// The review page, last part: one image at a time, a key or a click for each verdict, and undo.
const WORDS = { "1": "defect", "0": "no defect", "-1": "bad image" };
// Verdicts that could not be kept (number of the image -> message to the server), and how many are on their way.
const unsaved = new Map();
const sending = new Map();
// Notes on images that have no label yet (number of the image -> text).
const drafts = new Map();
// What was said here, the latest last: of which image, and as what it was known before.
const past = [];
let items = [], classes = [], at = 0, queue = Promise.resolve();

async function start() {
  const answer = await fetch("items");
  if (!answer.ok) { say(await answer.text()); return; }
  ({ items, classes } = await answer.json());
  makeList();
  const first = items.findIndex((item) => item.label === null);
  show(first < 0 ? 0 : first);
}

function show(index) {
  if (!items.length) return;
  keepNote();
  const to = Math.max(0, Math.min(items.length - 1, index));
  if (to !== at) zoom = 1;
  at = to;
  const item = items[at], kept = unsaved.get(at);
  $("problem").hidden = true;
  // Never an image under the heatmap, or the facts, of another one.
  for (const image of [picture, sharp, layer, mask]) image.removeAttribute("src");
  beginDrawing(item, kept);
  showEvidence();
  arrange();
  $("note").value = drafts.get(at) ?? kept?.note ?? item.note ?? "";
  describe();
  scrollList();
  // The next one is fetched while this one is looked at.
  if (at + 1 < items.length) { new Image().src = `picture/${at + 1}`; new Image().src = `layer/${at + 1}`; }
}

function describe() {
  const item = items[at], kept = (each, index) => each.label !== null && !unsaved.has(index) && !sending.has(index);
  const done = items.filter(kept).length;
  $("progress").textContent = `${done} of ${items.length} labelled${done === items.length ? ": that is all" : ""}`;
  $("bar").value = done; $("bar").max = items.length;
  $("rank").textContent = `${at + 1} of ${items.length}`;
  $("state").textContent = item.label === null ? "" : WORDS[item.label] + (item.defect_class ? `: ${item.defect_class}` : "");
  $("state").className = `l${item.label}`;
  const replaced = item.replaced ? " \u00b7 labelled before, but the image was replaced since" : "";
  $("facts").textContent = `score ${item.score.toPrecision(4)} \u00b7 p ${item.p_value.toPrecision(3)} \u00b7 ` +
    `${item.is_anomalous ? "alarm" : "no alarm"} \u00b7 ${item.date}${item.group ? ` \u00b7 ${item.group}` : ""} \u00b7 ` +
    `${item.width} x ${item.height}${replaced}`;
  $("name").textContent = item.name;
  $("if-defect").textContent = item.is_anomalous ? "a real alarm" : "the run missed it";
  $("if-none").textContent = item.is_anomalous ? "a false alarm" : "nominal, rightly no alarm";
  for (const button of document.querySelectorAll("[data-label]"))
    button.classList.toggle("on", item.label !== null && button.dataset.label === String(item.label));
  $("undo").disabled = !past.length;
  $("draft").hidden = !drafts.has(at);
  $("unsaved").hidden = !unsaved.size;
  if (unsaved.size) {
    const numbers = [...unsaved.keys()].map((index) => index + 1).sort((a, b) => a - b);
    $("retry").textContent = `${unsaved.size} not kept (${numbers.slice(0, 8).join(", ")}): try again`;
  }
  showClasses();
  markList();
}

function showClasses() {
  $("classes").replaceChildren(...classes.map((name, number) => {
    const button = document.createElement("button"), key = document.createElement("kbd");
    key.textContent = number + 1;
    if (number < 9) button.append(key, " ");
    button.append(name);
    button.classList.toggle("on", items[at].defect_class === name);
    button.addEventListener("click", () => classify(name));
    return button;
  }));
}

// A defect of this class; said of one that has it, it takes the class away.
function classify(name) {
  const has = items[at].defect_class === name;
  verdict(1, { move: !has, defect_class: has ? "" : name });
}

// A verdict is of the image that is shown at this moment, and moves on at once; it is sent after those before it.
function verdict(label, { move = true, ...texts } = {}) {
  if (drag || !items.length) return;
  const index = at, message = { ...unsaved.get(index), ...texts, label };
  keepNote();
  const entry = { index, item: { ...items[index] }, unsaved: unsaved.get(index), isKept: false };
  if (entry.item.label === null) entry.draft = drafts.get(index);
  if (label === null) {
    for (const name of ["boxes", "mask", "defect_class", "note"]) delete message[name];
    message.clear = true;
    wipe();
    changed = false;
    $("note").value = "";
  } else {
    Object.assign(message, drawing());
    if (drafts.has(index)) message.note = drafts.get(index);
  }
  drafts.delete(index);
  const item = items[index] = { ...items[index], label };
  if (message.boxes) item.boxes = message.boxes;
  if (label === null) item.note = null;
  if (message.note !== undefined) item.note = message.note || null;
  if (message.defect_class !== undefined) item.defect_class = message.defect_class || null;
  if (label !== 1) item.defect_class = null;
  past.push(entry);
  later(index, () => send(index, message, entry));
  unsaved.delete(index);
  if (move) onwards(); else describe();
}

// After everything that was to be sent before it.
function later(index, task) {
  sending.set(index, (sending.get(index) ?? 0) + 1);
  queue = queue.then(task).finally(() => {
    sending.set(index, sending.get(index) - 1);
    if (!sending.get(index)) sending.delete(index);
    describe();
  });
}

async function post(path, message) {
  try {
    return await fetch(path, {
      method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(message),
    });
  } catch { return new Response("the review has ended, or is out of reach", { status: 503 }); }
}

async function send(index, latest, entry) {
  // One that failed meanwhile may hold a drawing.
  const message = { ...unsaved.get(index), ...latest };
  unsaved.delete(index);
  const answer = await post(`label/${index}`, { ...message, seen: items[index].seen });
  if (!answer.ok && answer.status !== 409) {
    unsaved.set(index, message);
    say(`image ${index + 1} is not kept: ${await answer.text()}`);
    return;
  }
  const said = await answer.json(), { label, defect_class, note } = items[index];
  // A later verdict of ours on the same image is still on its way: it stays on the screen.
  const isLatest = !past.some((other) => other.index === index && past.indexOf(other) > past.indexOf(entry));
  items[index] = answer.ok && !isLatest ? { ...said, label, defect_class, note } : said;
  // What failed before and was sent with this one is undone with it.
  forget((other) => other.index === index && other !== entry && !other.isKept && past.indexOf(other) < past.indexOf(entry));
  if (answer.status === 409) {
    forget((other) => other === entry);
    if (message.note) drafts.set(index, message.note);
    if (index === at) show(at);
    say(`image ${index + 1}: somebody else labelled it meanwhile; this is what they said, label it again to change it`);
    return;
  }
  entry.isKept = true;
  if (said.defect_class && !classes.includes(said.defect_class)) classes.push(said.defect_class);
  if (!unsaved.size) say("");
  // Come back before it was kept: the drawing is shown as it is now.
  if (index === at && !drawnHere) { boxes = items[at].boxes.slice(); showMask(); showBoxes(); }
}

function forget(which) {
  for (const entry of past.filter(which)) past.splice(past.indexOf(entry), 1);
}

// What was said last here, of whichever image, is as if it had not been said.
function undo() {
  if (drag || !past.length) return;
  const entry = past.pop(), { index } = entry;
  later(index, async () => {
    if (entry.isKept) {
      const answer = await post(`undo/${index}`, { seen: items[index].seen });
      if (!answer.ok && answer.status !== 409) {
        past.push(entry);
        say(`image ${index + 1}: not undone: ${await answer.text()}`);
        return;
      }
      items[index] = await answer.json();
      if (answer.status === 409) say(`image ${index + 1}: somebody else labelled it meanwhile; this is what they said`);
    } else {
      // It never left this page.
      if (entry.unsaved) unsaved.set(index, entry.unsaved); else unsaved.delete(index);
      items[index] = entry.item;
      say("");
    }
    // A note from before there was a label is one again.
    if (entry.draft && items[index].label === null) drafts.set(index, entry.draft); else drafts.delete(index);
    if (index === at) $("note").value = drafts.get(index) ?? items[index].note ?? "";
    show(index);
  });
}

function retry() {
  for (const [index, message] of [...unsaved]) {
    const entry = past.findLast((each) => each.index === index) ?? { index, isKept: false };
    unsaved.delete(index);
    later(index, () => send(index, message, entry));
  }
}

function onwards() {
  const open = items.findIndex((item, index) => index > at && item.label === null);
  const earlier = items.findIndex((item) => item.label === null);
  if (open >= 0) show(open);
  else if (earlier >= 0) show(earlier);
  else describe();
}

function say(text) { $("message").textContent = text; }

// A note belongs to a label: to that which the image has, else to that which it will get.
function keepNote() {
  if (!items.length) return;
  const text = $("note").value.trim(), known = drafts.get(at) ?? unsaved.get(at)?.note ?? items[at].note ?? "";
  if (text !== known) drafts.set(at, text);
  if (!drafts.get(at) && !items[at].note) drafts.delete(at);
}

function noteChanged() {
  keepNote();
  if (drafts.has(at) && items[at].label !== null) verdict(items[at].label, { move: false });
  else describe();
}

for (const button of document.querySelectorAll("[data-label]"))
  button.addEventListener("click", () => verdict(JSON.parse(button.dataset.label), { move: button.dataset.label !== "null" }));
$("undo").addEventListener("click", undo);
$("previous").addEventListener("click", () => show(at - 1));
$("next").addEventListener("click", () => show(at + 1));
$("unlabelled").addEventListener("click", onwards);
$("retry").addEventListener("click", retry);
$("ask").addEventListener("click", () => $("help").showModal());
$("note").addEventListener("change", noteChanged);
$("class").addEventListener("keydown", (event) => {
  const name = $("class").value.trim().replace(/\s+/g, " ");
  if (event.key !== "Enter" || !name || !items.length) return;
  event.preventDefault();
  $("class").value = "";
  $("class").blur();
  if (!classes.includes(name)) classes.push(name);
  if (items[at].defect_class !== name) classify(name);
});
window.addEventListener("beforeunload", (event) => {
  if (unsaved.size || sending.size || drafts.size) event.preventDefault();
});

const KEYS = {
  d: () => $("defect").click(), f: () => $("false").click(), g: () => $("false").click(), b: () => $("bad").click(),
  u: () => $("clear").click(), z: undo,
  ArrowLeft: () => show(at - 1), k: () => show(at - 1), ArrowRight: () => show(at + 1), j: () => show(at + 1),
  n: onwards, h: () => $("heat").click(), r: () => $("boxes").click(), l: () => $("levels").click(), c: erase,
  x: () => choose(tool === "box" ? "none" : "box"), m: () => choose(tool === "brush" ? "none" : "brush"),
  t: () => $("class").focus(), w: () => $("note").focus(), "?": () => $("help").showModal(),
  "+": () => zoomBy(1.5), "=": () => zoomBy(1.5), "-": () => zoomBy(1 / 1.5), "0": wholeImage,
};
document.addEventListener("keydown", (event) => {
  if (event.altKey || $("help").open) return;
  const isText = event.target.closest("textarea, #class");
  if (isText) { if (event.key === "Escape") event.target.blur(); return; }
  if (event.key === " " && !event.target.closest("button, input")) { event.preventDefault(); spaceHeld = true; return; }
  if ((event.ctrlKey || event.metaKey) && event.key !== "z") return;
  const name = /^[1-9]$/.test(event.key) && classes[event.key - 1];
  const act = name ? () => classify(name) : KEYS[event.key];
  if (act && items.length) { event.preventDefault(); act(); }
});
document.addEventListener("keyup", (event) => { if (event.key === " ") spaceHeld = false; });

start();
