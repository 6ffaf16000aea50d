// The map over the picture: one box per image token, in the original picture's pixels.

const colour = (share) => d3[`interpolate${head.mapScale}`](share);
const stages = []; // per picture: { frame, canvas, picture, tokens, hint }
let shown = { values: null, top: 0 }; // the map on screen and the value of its brightest colour
let pointed = null; // image token, or cell, under the pointer or the keyboard's cursor

// How one picture is seen: in tiles, say, and as a whole.
function kindsOf(image, source = numbers) {
  return [...new Set(source.head.grids.filter((grid) => grid.image === image).map((grid) => grid.kind))];
}

// The kinds among which a reader can choose; none where every picture is seen in one way.
function severalKinds() {
  return [...new Set(head.pictures.map((picture, image) => kindsOf(image)).filter((own) => own.length > 1).flat())];
}

// Whether a grid is what the chosen view shows of its picture.
function isInView(grid, source) {
  return grid.kind === choice.view || kindsOf(grid.image, source).length === 1;
}

// What is drawn of one picture in the chosen view, each with its box and its place in the grid: a
// token, by its index into the map; or a patch that tokens share, with the part of each that is its.
function tokensOf(image, source = numbers) {
  if (choice.view === COMBINED && kindsOf(image, source).length > 1) return cellsOf(image, source);
  const tokens = [];
  source.head.grids.forEach((grid, number) => {
    if (grid.image !== image || !isInView(grid, source)) return;
    const columns = source.curves[`grid${number}.columns`].values;
    const boxes = source.curves[`grid${number}.boxes`].values;
    const cells = grid.rows * grid.columns;
    const looks = grid.how === "" ? null : source.curves[`grid${number}.looks`].values;
    for (let place = 0; place < cells; place++) {
      tokens.push({
        indices: looks === null ? [columns[place]] : columns,
        parts: looks === null ? null : Array.from(columns, (_, token) => looks[token * cells + place]),
        image, number, row: Math.floor(place / grid.columns), column: place % grid.columns,
        box: boxes.subarray(4 * place, 4 * place + 4),
      });
    }
  });
  return tokens;
}

// All grids of one picture together: the cells that their boxes cut it into, each with the tokens
// over it. Every token covers all of its cell, so their mean by area is their plain mean.
function cellsOf(image, { head: own, curves }) {
  const [x, y, columns, rows] = ["x", "y", "columns", "rows"].map((name) => curves[`cells${image}.${name}`].values);
  const across = x.length - 1, down = y.length - 1;
  const grids = d3.range(own.grids.length).filter((number) => own.grids[number].image === image);
  const cells = [];
  for (let row = 0; row < down; row++) for (let column = 0; column < across; column++) {
    const indices = [];
    grids.forEach((number, place) => {
      const from = rows[place * down + row], at = columns[place * across + column];
      if (from >= 0 && at >= 0) indices.push(curves[`grid${number}.columns`].values[from * own.grids[number].columns + at]);
    });
    if (indices.length > 0) cells.push({ indices, parts: null, image, number: -1, row, column, box: [x[column], y[row], x[column + 1], y[row + 1]] });
  }
  return cells;
}

function valueOf({ indices, parts }, values) {
  if (parts === null) return d3.mean(indices, (index) => values[index]);
  return d3.sum(parts, (part, token) => part * values[indices[token]]);
}

// Whether tokens share what is drawn of the pictures.
const isShared = () => head.grids.some((grid) => grid.how !== "");

function layPictures() {
  const place = find("pictures");
  head.pictures.forEach((picture, image) => {
    const several = head.pictures.length > 1;
    const label = picture.frames || (several ? `picture ${image + 1}` : "");
    const number = several ? `Picture ${image + 1} of ${head.pictures.length}` : "The picture";
    const name = picture.frames ? `${number} (${picture.frames})` : number;
    const photo = make("img", { src: picture.source, alt: label || "the picture asked about" });
    const canvas = make("canvas", { tabIndex: 0, role: "application", "aria-roledescription": "map of image tokens",
      "aria-label": `${name} with its map. Arrow keys walk over the image tokens.` });
    const message = make("p", { className: "message", hidden: true });
    const frame = make("div", { className: "frame" }, photo, canvas, message);
    const ratio = picture.width / picture.height;
    frame.style.aspectRatio = String(ratio);
    frame.style.setProperty("--ratio", String(ratio));
    const stage = { frame, canvas, message, picture, image, tokens: tokensOf(image) };
    const figure = make("figure", { className: "stage" }, frame);
    if (label) figure.append(make("figcaption", { textContent: label }));
    place.append(figure);
    stages.push(stage);
    canvas.addEventListener("pointermove", (event) => point(stage, tokenAt(stage, event)));
    canvas.addEventListener("pointerleave", () => point(stage, null));
    canvas.addEventListener("blur", () => point(stage, null));
    canvas.addEventListener("keydown", (event) => walk(stage, event));
    onResize(frame, () => paint(stage));
  });
  const how = head.grids.find((grid) => grid.how !== "")?.how;
  find("how-note").hidden = how === undefined;
  find("how-note").textContent = how === undefined ? "" : `The picture's image tokens have no places of their own: ${how}.`;
  if (head.grids.length === 0) find("readout").textContent = head.gridsMissing || "Which pixels an image token sees is not known for this model.";
}

function tokenAt(stage, event) {
  const area = stage.canvas.getBoundingClientRect();
  const x = ((event.clientX - area.left) / area.width) * stage.picture.width;
  const y = ((event.clientY - area.top) / area.height) * stage.picture.height;
  return stage.tokens.find(({ box }) => x >= box[0] && x < box[2] && y >= box[1] && y < box[3]) ?? null;
}

function walk(stage, event) {
  const step = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0] }[event.key];
  if (event.key === "Escape") return point(stage, null);
  if (!step || stage.tokens.length === 0 || shown.values === null || event.shiftKey) return undefined;
  event.preventDefault();
  const strongest = () => stage.tokens.reduce((best, token) => (valueOf(token, shown.values) > valueOf(best, shown.values) ? token : best));
  const from = pointed?.image === stage.image ? pointed : null;
  const goal = from === null
    ? strongest() // a walk starts where the map is strongest
    : stage.tokens.find((token) => token.number === from.number && token.row === from.row + step[0] && token.column === from.column + step[1]);
  if (goal) {
    point(stage, goal);
    find("live").textContent = find("readout").textContent;
  }
  return undefined;
}

function point(stage, token) {
  pointed = token;
  paint(stage);
  tellToken();
}

function tellToken() {
  const place = find("readout");
  if (head.grids.length === 0) return;
  if (pointed === null || shown.values === null) {
    place.textContent = shown.values === null ? "" : `Point at the picture to read a ${isShared() ? "patch" : "token"}'s value.`;
    return;
  }
  const edges = Array.from(pointed.box, (edge) => Number(edge.toFixed(1)));
  if (pointed.parts !== null) {
    place.textContent = `Patch at row ${pointed.row + 1}, column ${pointed.column + 1}: ${figure(valueOf(pointed, shown.values))}`
      + ` from ${pointed.indices.length} tokens · x ${edges[0]}–${edges[2]}, y ${edges[1]}–${edges[3]} px`;
    return;
  }
  const names = pointed.indices.map((index) => `${index} (position ${numbers.curves.positions.values[index]})`);
  const who = names.length === 1 ? `Image token ${names[0]}` : `Mean of image tokens ${names.join(" and ")}`;
  place.textContent = `${who}: ${figure(valueOf(pointed, shown.values))}`
    + ` · x ${edges[0]}–${edges[2]}, y ${edges[1]}–${edges[3]} px`;
}

const isSamePlace = (one, other) => ["number", "row", "column"].every((name) => one[name] === other[name]);

const brightness = (value) => {
  const share = shown.top > 0 ? value / shown.top : 0;
  return choice.steps === "root" ? Math.sqrt(share) : share;
};

function paint(stage) {
  const { canvas, picture, tokens } = stage;
  const scale = window.devicePixelRatio || 1;
  canvas.width = Math.max(1, Math.round(canvas.clientWidth * scale));
  canvas.height = Math.max(1, Math.round(canvas.clientHeight * scale));
  const context = canvas.getContext("2d");
  // edges are rounded to screen pixels, so that neighbours share them without a seam
  const place = ({ box }) => {
    const [left, right] = [box[0], box[2]].map((x) => Math.round((x / picture.width) * canvas.width));
    const [top, bottom] = [box[1], box[3]].map((y) => Math.round((y / picture.height) * canvas.height));
    return [left, top, right - left, bottom - top];
  };
  if (tokens.length > 0) greyUnseen(stage, context, place);
  if (shown.values !== null && choice.look === "outline") drawOutlines(context, tokens, place);
  else if (shown.values !== null) {
    for (const token of tokens) {
      const bright = brightness(valueOf(token, shown.values));
      context.fillStyle = colour(bright);
      // weak values let more of the picture through than strong ones
      context.globalAlpha = choice.opacity * (0.08 + 0.92 * Math.sqrt(bright));
      context.fillRect(...place(token));
    }
    context.globalAlpha = 1;
  }
  if (shown.values !== null && !isSummed(choice.signal)) crossOut(context, canvas, picture, tokens, choice.layer);
  drawBox(context, canvas, picture, stage.image);
  if (pointed !== null && pointed.image === stage.image) {
    const [x, y, width, height] = place(pointed);
    context.lineWidth = 2 * scale;
    context.strokeStyle = "#000";
    context.strokeRect(x, y, width, height);
    context.lineWidth = scale;
    context.strokeStyle = "#fff";
    context.strokeRect(x, y, width, height);
  }
}

function greyUnseen(stage, context, place) {
  const { canvas, tokens } = stage;
  const ruled = document.createElement("canvas");
  ruled.width = ruled.height = 10;
  const pen = ruled.getContext("2d");
  pen.fillStyle = "rgba(110,110,110,.72)";
  pen.fillRect(0, 0, 10, 10);
  pen.strokeStyle = "rgba(235,235,235,.35)";
  pen.lineWidth = 1.5;
  for (const shift of [-10, 0, 10]) {
    pen.beginPath();
    pen.moveTo(shift, 10);
    pen.lineTo(shift + 10, 0);
    pen.stroke();
  }
  context.fillStyle = context.createPattern(ruled, "repeat");
  context.fillRect(0, 0, canvas.width, canvas.height);
  let seen = 0;
  const bounds = [canvas.width, canvas.height, 0, 0];
  for (const token of tokens) {
    const [x, y, width, height] = place(token);
    context.clearRect(x, y, width, height);
    seen += Math.max(0, Math.min(x + width, canvas.width) - Math.max(x, 0)) * Math.max(0, Math.min(y + height, canvas.height) - Math.max(y, 0));
    bounds[0] = Math.min(bounds[0], x);
    bounds[1] = Math.min(bounds[1], y);
    bounds[2] = Math.max(bounds[2], x + width);
    bounds[3] = Math.max(bounds[3], y + height);
  }
  stage.unseen = seen < 0.995 * canvas.width * canvas.height;
  find("unseen-note").hidden = !stages.some((one) => one.unseen);
  nameUnseen(context, canvas, bounds);
}

// "not seen" inside each grey strip that has room for it.
function nameUnseen(context, canvas, [left, top, right, bottom]) {
  const scale = window.devicePixelRatio || 1;
  const strips = [
    [0, 0, left, canvas.height], [right, 0, canvas.width - right, canvas.height],
    [0, 0, canvas.width, top], [0, bottom, canvas.width, canvas.height - bottom],
  ];
  context.fillStyle = "#fff";
  context.font = `${12 * scale}px ${getComputedStyle(document.body).fontFamily}`;
  context.textAlign = "center";
  context.textBaseline = "middle";
  for (const [x, y, width, height] of strips) {
    if (Math.min(width, height) < 18 * scale || Math.max(width, height) < 80 * scale) continue;
    context.save();
    context.translate(x + width / 2, y + height / 2);
    if (height > width) context.rotate(-Math.PI / 2);
    context.fillText("not seen", 0, 0);
    context.restore();
  }
}

// Value of the brightest colour: the largest of this map, or of this signal's maps in all layers.
function brightest(block, signal) {
  const layers = numbers.layersOf(signal);
  const tops = topsOf(block, signal);
  let top = choice.reach === "layer" || isSummed(signal) ? tops[mapLayer()] : 0;
  if (choice.reach === "all" && !isSummed(signal)) {
    for (let layer = 0; layer < layers; layer++) {
      if (numbers.flag(signal, layer, choice.target) === 0) top = Math.max(top, tops[layer]);
    }
  }
  return top;
}

// Largest value drawn in every layer: a token's, or a patch's where tokens share the picture.
function topsOf(block, signal) {
  if (!isShared()) return block[`${signal}.top`].values;
  const cells = head.pictures.flatMap((_, image) => tokensOf(image));
  return d3.range(numbers.layersOf(signal)).map((layer) => {
    const values = row(block, signal, layer);
    return d3.max(cells, (cell) => valueOf(cell, values)) ?? 0;
  });
}

function whyNoMap() {
  if (head.signals.length === 0) return "No signal was measured.";
  if (!numbers.hasMap(choice.target)) return "The map of this token is not in this page, to keep it small. flow.safetensors holds it.";
  const flag = numbers.flag(choice.signal, mapLayer(), choice.target);
  if (flag !== 0) return flagReason(flag, choice.layer);
  return null;
}

async function showMap() {
  const wanted = { ...choice };
  const why = whyNoMap();
  let block = null;
  if (why === null) {
    block = await numbers.mapsOf(choice.target);
    // a later choice has its own showMap under way
    if (["signal", "layer", "target", "reach"].some((name) => wanted[name] !== choice[name])) return;
  }
  shown = block === null
    ? { values: null, top: 0 }
    : { values: row(block, choice.signal, mapLayer()), top: brightest(block, choice.signal) };
  for (const stage of stages) {
    stage.tokens = tokensOf(stage.image);
    if (pointed?.image === stage.image) pointed = stage.tokens.find((token) => isSamePlace(token, pointed)) ?? null;
    stage.message.textContent = why ?? "";
    stage.message.hidden = why === null;
    stage.frame.classList.toggle("nothing", why !== null);
    paint(stage);
  }
  tellToken();
  showLegend();
  const where = isSummed(choice.signal) ? "" : `, layer ${choice.layer}`;
  find("map-says").textContent = head.signals.length === 0 ? why : `${signalWords(choice.signal).label}${where}, for ${targetName(choice.target)}${viewWords()}`;
  find("live").textContent = `${find("map-says").textContent}. ${why ?? `Largest value ${figure(largest())}.`}`;
  document.body.dataset.shown = `${choice.signal}/${choice.layer}/${choice.target}`;
}

const largest = () => (isShared()
  ? d3.max(stages.flatMap((stage) => stage.tokens), (patch) => valueOf(patch, shown.values))
  : d3.max(shown.values));

function showLegend() {
  const place = find("legend");
  if (shown.values === null || shown.top === 0) {
    place.replaceChildren(make("p", { className: "hint", textContent: "No map, no colours." }));
    return;
  }
  const middle = choice.steps === "root" ? shown.top / 4 : shown.top / 2;
  place.replaceChildren(drawn(Plot.legend({
    color: {
      type: choice.steps === "root" ? "sqrt" : "linear", domain: [0, shown.top], interpolate: colour,
      label: `${signalWords(choice.signal).label}, value per ${isShared() ? "patch" : "image token"}`,
    },
    className: "chart", width: 280, height: 50, marginLeft: 8, marginRight: 34, tickSize: 4,
    ticks: [0, middle, shown.top], tickFormat: figure,
  })));
}
