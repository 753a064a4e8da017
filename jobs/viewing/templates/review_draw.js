// The review page, second part: boxes and a mask by mouse, on the image at hand.
const mask = $("mask"), paint = $("paint"), pen = paint.getContext("2d", { willReadFrequently: true });
let tool = "none", drag = null;
// All its boxes (in its pixels), new paint, and whether the old one was cleared.
let boxes = [], painted = false, cleared = false, changed = false, drawnHere = false;

function beginDrawing(item, kept) {
  const scale = Math.min(1, SHOWN_SIDE / Math.max(item.width, item.height));
  drag = null;
  paint.width = Math.max(1, Math.round(item.width * scale));
  paint.height = Math.max(1, Math.round(item.height * scale));
  for (const id of ["lines", "drawn"]) $(id).setAttribute("viewBox", `0 0 ${item.width} ${item.height}`);
  boxes = (kept?.boxes ?? item.boxes).slice();
  painted = changed = drawnHere = false;
  cleared = Boolean(kept?.clear);
  if (kept?.mask) repaint(at, kept.mask);
  showMask();
  showBoxes();
}

// What a verdict says of the drawing: nothing, where it did not change.
function drawing() {
  if (!changed) return {};
  changed = false;
  const message = { boxes: boxes.slice() };
  if (painted) message.mask = paint.toDataURL("image/png").split(",")[1];
  if (cleared) message.clear = true;
  return message;
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

function showBoxes() {
  const each = (box) => [`M${box.x0} ${box.y0}H${box.x1}V${box.y1}H${box.x0}Z`, "mine"];
  $("drawn").replaceChildren(...cased(boxes.map(each)));
}

function wipe() {
  boxes = [];
  painted = false;
  cleared = true;
  pen.clearRect(0, 0, paint.width, paint.height);
  showMask();
  showBoxes();
}

function erase() {
  if (drag) return;
  wipe();
  changed = true;
  if (items[at].label === 1) verdict(1, { move: false });
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
  if (tool === "none" || event.button || spaceHeld || !items.length) return;
  event.preventDefault();
  event.stopPropagation();  // it does not move the image
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
  showBoxes();
});
for (const name of ["pointerup", "pointercancel"]) stage.addEventListener(name, () => {
  if (!drag) return;
  const drawn = tool === "brush" || drag.box;
  drag = null;
  if (!drawn) return;
  changed = true;
  // Whoever marks a defect says that there is one.
  verdict(1, { move: false });
});

function stroke(event) {
  const [x, y] = place(event), [a, b] = drag.last;
  pen.strokeStyle = "#ff2d55";
  pen.lineCap = "round";
  // As wide on the screen at any zoom.
  pen.lineWidth = Math.max(1, $("size").value * Math.max(paint.width, paint.height) / 200 / zoom);
  pen.beginPath();
  pen.moveTo(a * paint.width, b * paint.height);
  pen.lineTo(x * paint.width + 0.01, y * paint.height);
  pen.stroke();
  drag.last = [x, y];
  painted = true;
}

for (const radio of document.querySelectorAll("[name=tool]")) radio.addEventListener("change", () => choose(radio.value));
// Once the brush has its width, the keys are for the images again.
$("size").addEventListener("change", () => $("size").blur());
$("erase").addEventListener("click", erase);
