// The picture of the interaction: what the chosen word reads there, and a region that the reader marks.

const panels = []; // per picture: { canvas, picture, image, message }
let wordMap = { values: null, top: 0 };

// The weight of every image token in a region: tokens whose middle lies inside count as a whole.
function weightsOf({ image, box }) {
  const weights = new Map();
  for (const { indices, parts, box: [x0, y0, x1, y1] } of tokensOf(image)) {
    const [x, y] = [(x0 + x1) / 2, (y0 + y1) / 2];
    if (x < box[0] || x > box[2] || y < box[1] || y > box[3]) continue;
    indices.forEach((index, place) => {
      weights.set(index, parts === null ? 1 : (weights.get(index) ?? 0) + parts[place]);
    });
  }
  return weights;
}

function layPanels() {
  const place = find("word-pictures");
  head.pictures.forEach((picture, image) => {
    const label = picture.frames || (head.pictures.length > 1 ? `picture ${image + 1}` : "");
    const photo = make("img", { src: picture.source, alt: label || "the picture asked about" });
    const canvas = make("canvas", { tabIndex: 0, role: "application", "aria-roledescription": "map of image tokens",
      "aria-label": `${label || "The picture"}: what the chosen word reads. Arrow keys mark an image token, with Shift they draw a box, Escape clears.` });
    const message = make("p", { className: "message", hidden: true });
    const frame = make("div", { className: "frame" }, photo, canvas, message);
    const ratio = picture.width / picture.height;
    frame.style.aspectRatio = String(ratio);
    frame.style.setProperty("--ratio", String(ratio));
    const figure = make("figure", { className: "stage" }, frame);
    if (label) figure.append(make("figcaption", { textContent: label }));
    place.append(figure);
    const panel = { canvas, picture, image, message, frame };
    panels.push(panel);
    listenToRegion(panel);
    onResize(frame, () => paintPanel(panel));
  });
  find("region-clear").addEventListener("click", () => choose({ region: null }));
}

function spotOf({ canvas, picture }, event) {
  const area = canvas.getBoundingClientRect();
  const inside = (value, length) => Math.max(0, Math.min(length, value * length));
  return [inside((event.clientX - area.left) / area.width, picture.width), inside((event.clientY - area.top) / area.height, picture.height)];
}

const cellAt = (image, [x, y]) => tokensOf(image).find(({ box }) => x >= box[0] && x < box[2] && y >= box[1] && y < box[3]);

// A click marks the token there; a drag marks those whose middles lie in the box.
function listenToRegion(panel) {
  const { canvas, image } = panel;
  let from = null;
  const mark = (event) => {
    const to = spotOf(panel, event);
    const box = [Math.min(from[0], to[0]), Math.min(from[1], to[1]), Math.max(from[0], to[0]), Math.max(from[1], to[1])];
    const cell = cellAt(image, to);
    if (weightsOf({ image, box }).size > 0) choose({ region: { image, box } });
    else if (cell) choose({ region: { image, box: [...cell.box] } });
  };
  canvas.addEventListener("pointerdown", (event) => {
    if (event.button !== 0 || head.grids.length === 0) return;
    from = spotOf(panel, event);
    canvas.setPointerCapture(event.pointerId);
    mark(event);
  });
  canvas.addEventListener("pointermove", (event) => from !== null && mark(event));
  for (const end of ["pointerup", "pointercancel"]) canvas.addEventListener(end, () => { from = null; });
  canvas.addEventListener("keydown", (event) => walkRegion(panel, event));
}

// Arrow keys mark the next token; with Shift they move the box's right or lower side by one.
function walkRegion({ image }, event) {
  const step = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[event.key];
  if (event.key === "Escape") return choose({ region: null });
  const cells = tokensOf(image);
  if (!step || cells.length === 0) return undefined;
  event.preventDefault();
  const own = choice.region?.image === image ? choice.region.box : null;
  if (own === null) return choose({ region: { image, box: [...cells[Math.floor(cells.length / 2)].box] } });
  const hair = 0.25 * d3.min(cells, ({ box }) => Math.min(box[2] - box[0], box[3] - box[1]));
  const middle = [(own[0] + own[2]) / 2, (own[1] + own[3]) / 2];
  const axis = step[0] === 0 ? 1 : 0;
  const forward = step[axis] > 0;
  // just outside of the side that the key points to; to shrink, just inside of the far one
  const spot = [...middle];
  spot[axis] = forward ? own[axis + 2] + hair : event.shiftKey ? own[axis + 2] - hair : own[axis] - hair;
  const goal = cellAt(image, spot);
  if (goal === undefined) return undefined;
  if (!event.shiftKey) return choose({ region: { image, box: [...goal.box] } });
  const box = [...own];
  box[axis + 2] = forward ? goal.box[axis + 2] : goal.box[axis];
  return weightsOf({ image, box }).size > 0 ? choose({ region: { image, box } }) : undefined;
}

async function showWordMap() {
  const wanted = { word: choice.word, layer: choice.layer };
  const { row: number } = itemOf(choice.word);
  const share = reading.of(number, choice.layer);
  let why = null;
  if (share === null) why = flagReason(3, choice.layer);
  else if (!reading.hasMap(number)) why = "The map of this word is not in this page, to keep it small. flow.safetensors holds it.";
  const block = why === null ? await reading.mapOf(number) : null;
  if (wanted.word !== choice.word || wanted.layer !== choice.layer) return;
  wordMap = { values: null, top: 0 };
  if (block !== null) {
    const values = row(block, "map", choice.layer, head.words.bits);
    const top = choice.reach === "all" ? d3.max(block["map.top"].values) : block["map.top"].values[choice.layer];
    wordMap = { values, top, word: wanted.word, layer: wanted.layer };
  }
  for (const panel of panels) {
    panel.message.textContent = why ?? "";
    panel.message.hidden = why === null;
    panel.frame.classList.toggle("nothing", why !== null);
    paintPanel(panel);
  }
  const tokens = wordMap.values === null ? 0 : wordMap.values.length;
  const picture = share === null ? "" : `${percent(pictureShare(share))} of its attention on the ${head.pictures.length > 1 ? "pictures" : "picture"}`;
  const ranked = tokens > 0 ? d3.sort(wordMap.values, (value) => -value) : [];
  const sum = d3.sum(ranked);
  const held = sum > 0 ? `; the strongest 10\u00a0% of image tokens hold ${percent(d3.sum(ranked.slice(0, Math.ceil(0.1 * tokens - 1e-9))) / sum)} of that` : "";
  find("word-map-says").textContent = why ?? asSentence(`${wordName(choice.word)} at layer ${choice.layer}: ${picture}${held}.`);
  tellRemoved();
  document.body.dataset.word = `${choice.word}/${choice.layer}`;
}

function paintPanel({ canvas, picture, image }) {
  const scale = window.devicePixelRatio || 1;
  canvas.width = Math.max(1, Math.round(canvas.clientWidth * scale));
  canvas.height = Math.max(1, Math.round(canvas.clientHeight * scale));
  const context = canvas.getContext("2d");
  const cells = tokensOf(image);
  if (wordMap.values !== null) paintCells(context, canvas, picture, cells, wordMap);
  crossOut(context, canvas, picture, cells, choice.layer);
  const { region } = choice;
  if (region === null || region.image !== image) return;
  const inside = cells.filter(({ box }) => {
    const [x, y] = [(box[0] + box[2]) / 2, (box[1] + box[3]) / 2];
    return x >= region.box[0] && x <= region.box[2] && y >= region.box[1] && y <= region.box[3];
  });
  const edges = [d3.min(inside, ({ box }) => box[0]), d3.min(inside, ({ box }) => box[1]), d3.max(inside, ({ box }) => box[2]), d3.max(inside, ({ box }) => box[3])];
  const [x0, y0, x1, y1] = edges.map((edge, side) => (side % 2 ? (edge / picture.height) * canvas.height : (edge / picture.width) * canvas.width));
  for (const [stroke, width] of [["#000", 4], ["#fff", 2]]) {
    context.strokeStyle = stroke;
    context.lineWidth = width * scale;
    context.strokeRect(x0, y0, x1 - x0, y1 - y0);
  }
}

// Fill the tokens of a picture with the colours of a map's values.
function paintCells(context, canvas, picture, cells, { values, top }) {
  for (const cell of cells) {
    const share = top > 0 ? Math.min(1, valueOf(cell, values) / top) : 0;
    const bright = choice.steps === "root" ? Math.sqrt(share) : share;
    // edges are rounded to screen pixels, so that neighbours share them without a seam
    const [left, right] = [cell.box[0], cell.box[2]].map((x) => Math.round((x / picture.width) * canvas.width));
    const [upper, lower] = [cell.box[1], cell.box[3]].map((y) => Math.round((y / picture.height) * canvas.height));
    context.fillStyle = colour(bright);
    context.globalAlpha = choice.opacity * (0.08 + 0.92 * Math.sqrt(bright));
    context.fillRect(left, upper, right - left, lower - upper);
  }
  context.globalAlpha = 1;
}
