// The review page, first part: the image on the screen, zoomed and moved, and what lies over it.
"use strict";
const $ = (id) => document.getElementById(id);
const MAX_ZOOM = 40, SHOWN_SIDE = 1600;
const room = $("room"), stage = $("stage"), picture = $("picture"), sharp = $("sharp"), layer = $("layer");
// How many times the whole image's size it has, and how far its middle is from the room's, in pixels of the screen.
let zoom = 1, shift = [0, 0];
// Pointers that are down and move the image (id -> place), and whether the space bar makes every drag do that.
const fingers = new Map();
let spaceHeld = false;

// Pixels of the screen to one of the image, with the whole image in the room.
function fitting() {
  const item = items[at], frame = room.getBoundingClientRect();
  return Math.min((frame.width - 24) / item.width, (frame.height - 24) / item.height);
}

function arrange() {
  if (!items.length) return;
  const item = items[at], frame = room.getBoundingClientRect(), scale = fitting() * zoom;
  const size = [Math.max(1, item.width * scale), Math.max(1, item.height * scale)];
  // A zoomed image fills the room as far as it can; a small one stays in the middle.
  for (const [axis, space] of [[0, frame.width], [1, frame.height]]) {
    const free = Math.max(0, (size[axis] - space) / 2 + (zoom > 1 ? 40 : 0));
    shift[axis] = zoom === 1 ? 0 : Math.max(-free, Math.min(free, shift[axis]));
  }
  stage.style.width = `${size[0]}px`;
  stage.style.height = `${size[1]}px`;
  stage.style.left = `${(frame.width - size[0]) / 2 + shift[0]}px`;
  stage.style.top = `${(frame.height - size[1]) / 2 + shift[1]}px`;
  room.classList.toggle("zoomed", zoom > 1);
  $("whole").textContent = `${Math.round(100 * scale)} %`;
  const shown = Math.max(...size) * devicePixelRatio;
  // More pixels than the picture has, and the image does have them.
  if (shown > 1.2 * SHOWN_SIDE && Math.max(item.width, item.height) > SHOWN_SIDE && !sharp.hasAttribute("src"))
    sharp.src = `sharp/${at}`;
}

// The place of the image under (x, y) of the screen stays there.
function zoomTo(wanted, x, y) {
  if (!items.length) return;
  const frame = room.getBoundingClientRect(), before = zoom;
  const from = [x - frame.left - frame.width / 2, y - frame.top - frame.height / 2];
  zoom = Math.max(1, Math.min(MAX_ZOOM, wanted));
  shift = shift.map((value, axis) => from[axis] + (value - from[axis]) * (zoom / before));
  arrange();
}

function zoomBy(factor) {
  const frame = room.getBoundingClientRect();
  zoomTo(zoom * factor, frame.left + frame.width / 2, frame.top + frame.height / 2);
}

function wholeImage() { zoom = 1; arrange(); }

room.addEventListener("wheel", (event) => {
  event.preventDefault();
  // Lines, or the small steps of two fingers on a touch pad, or pixels.
  const step = event.deltaMode === WheelEvent.DOM_DELTA_LINE ? 0.06 : event.ctrlKey ? 0.01 : 0.002;
  zoomTo(zoom * Math.exp(-event.deltaY * step), event.clientX, event.clientY);
}, { passive: false });
room.addEventListener("dblclick", (event) => {
  if (tool !== "none" || event.target.closest("#zooming")) return;
  if (zoom > 1) wholeImage(); else zoomTo(Math.max(3, 1 / fitting()), event.clientX, event.clientY);
});
room.addEventListener("pointerdown", (event) => {
  if (event.button > 1 || event.target.closest("#zooming")) return;
  event.preventDefault();
  document.activeElement?.blur();
  room.setPointerCapture(event.pointerId);
  fingers.set(event.pointerId, [event.clientX, event.clientY]);
  room.classList.add("moving");
});
room.addEventListener("pointermove", (event) => {
  const before = fingers.get(event.pointerId), now = [event.clientX, event.clientY];
  if (!before) return;
  fingers.set(event.pointerId, now);
  const other = [...fingers].find(([id]) => id !== event.pointerId)?.[1];
  if (other) {
    const apart = (a) => Math.max(1, Math.hypot(a[0] - other[0], a[1] - other[1]));
    zoomTo(zoom * apart(now) / apart(before), (now[0] + other[0]) / 2, (now[1] + other[1]) / 2);
  } else {
    shift = shift.map((value, axis) => value + now[axis] - before[axis]);
    arrange();
  }
});
for (const name of ["pointerup", "pointercancel"]) room.addEventListener(name, (event) => {
  fingers.delete(event.pointerId);
  room.classList.toggle("moving", fingers.size > 0);
});
$("smaller").addEventListener("click", () => zoomBy(1 / 1.5));
$("larger").addEventListener("click", () => zoomBy(1.5));
$("whole").addEventListener("click", wholeImage);
window.addEventListener("resize", arrange);

function pathOf(data, kind) {
  const path = document.createElementNS("http://www.w3.org/2000/svg", "path");
  path.setAttribute("class", kind);
  path.setAttribute("d", data);
  return path;
}

// Each line twice, wide and narrow: one of the two is seen on any ground.
function cased(lines) {
  return [...lines.map(([data, kind]) => pathOf(data, `${kind} dark`)), ...lines.map(([data, kind]) => pathOf(data, kind))];
}

async function showEvidence() {
  const index = at;
  $("lines").replaceChildren();
  picture.src = `picture/${index}`;
  layer.src = `layer/${index}`;
  showScale(items[index].scale);
  const answer = await fetch(`contours/${index}`).catch(() => null);
  if (index !== at || !answer || !answer.ok) return;
  const found = await answer.json();
  const lines = found.map(([level, data]) => [data, level === 1 ? "outline" : "level"]);
  if (index === at) $("lines").replaceChildren(...cased(lines));
}

function showScale(marks) {
  $("marks").replaceChildren(...marks.map(([share, words, isThreshold]) => {
    const mark = document.createElement("span");
    mark.textContent = words;
    mark.style.left = `${100 * share}%`;
    mark.classList.toggle("threshold", isThreshold);
    return mark;
  }));
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
sharp.addEventListener("error", () => sharp.removeAttribute("src"));
for (const [id, kind] of [["heat", "heat"], ["boxes", "boxes"], ["levels", "levels"]])
  $(id).addEventListener("change", () => stage.classList.toggle(kind, $(id).checked));
