// Keys for what the mouse does: without this script everything still works.
"use strict";
const figures = [...document.querySelectorAll("figure.worst")];
const large = document.getElementById("large");
let at = -1;

function go(to) {
  if (!figures.length) return;
  at = Math.max(0, Math.min(figures.length - 1, to));
  figures[at].focus({ preventScroll: true });
  figures[at].scrollIntoView({ block: "nearest" });
  if (large.open) show();
}

function show() {
  const view = figures[at].querySelector(".view, .gone").cloneNode(true);
  // Its heatmap follows the one it was taken from.
  const one = figures[at].querySelector(".one");
  const copy = view.querySelector(".one");
  if (one && copy) copy.addEventListener("change", () => { one.checked = copy.checked; });
  const figure = document.createElement("figure");
  figure.append(view, figures[at].querySelector("figcaption").cloneNode(true));
  large.replaceChildren(figure);
  if (!large.open) large.showModal();
}

function flip(id) {
  const box = document.getElementById(id);
  if (box) box.checked = !box.checked;
}

for (const [index, figure] of figures.entries()) figure.addEventListener("focusin", () => { at = index; });

document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.altKey || event.metaKey) return;
  const key = event.key;
  if (key === "ArrowRight" || key === "j") go(at + 1);
  else if (key === "ArrowLeft" || key === "k") go(at - 1);
  else if (key === "h") flip("heat");
  else if (key === "r") flip("boxes");
  else if (key === "Enter" && at >= 0 && !large.open && !event.target.closest("a, summary")) show();
  else return;
  event.preventDefault();
});
