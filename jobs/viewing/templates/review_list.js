// The review page, third part: the list of all images, small, with what was said of each.
const thumbnails = [];

function makeList() {
  for (const [index, item] of items.entries()) {
    const button = document.createElement("button"), image = new Image(), rank = document.createElement("span");
    image.loading = "lazy";  // those that are never scrolled to are never read
    image.fetchPriority = "low";
    image.alt = "";
    image.src = `thumbnail/${index}`;
    image.addEventListener("error", () => image.remove());
    rank.textContent = index + 1;
    button.title = item.name;
    button.append(image, rank);
    button.addEventListener("click", () => { button.blur(); show(index); });
    thumbnails.push(button);
  }
  $("list").replaceChildren(...thumbnails);
}

function markList() {
  for (const [index, button] of thumbnails.entries()) {
    const item = items[index], said = item.label === null ? "without label" : WORDS[item.label];
    const alarm = item.is_anomalous ? "alarm" : "no alarm";
    button.className = `l${item.label} ${item.is_anomalous ? "alarm" : ""} ${unsaved.has(index) ? "unsaved" : ""}`;
    button.ariaLabel = `image ${index + 1}, ${alarm}, ${said}`;
    if (index === at) button.setAttribute("aria-current", "true"); else button.removeAttribute("aria-current");
  }
}

function scrollList() {
  const button = thumbnails[at], list = $("list");
  list.scrollLeft = button.offsetLeft - list.offsetLeft - (list.clientWidth - button.offsetWidth) / 2;
}
