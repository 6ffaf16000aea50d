// Who reads a region of the picture, and at which layers: a strip of layers by words, and curves.

const readers = { values: [], top: 0 }; // [row][layer], and the largest of all
const LINE = 18; // height of a word's strip, in the page's pixels

const regionName = () => (choice.region === null ? (head.pictures.length > 1 ? "the pictures" : "the picture") : "the marked region");

async function showReaders() {
  const { region } = choice;
  const values = await readingOf(region);
  if (region !== choice.region) return;
  Object.assign(readers, { values, top: d3.max(values.flat()) ?? 0 });
  find("region-clear").hidden = region === null;
  for (const name of document.querySelectorAll(".region-name")) name.textContent = regionName();
  panels.forEach(paintPanel);
  layStrip();
  showBars();
  tellReader();
  showWordChart();
}

function layStrip() {
  const alone = d3.range(head.words.items.length).filter((number) => itemOf(number).row >= 0);
  const names = alone.map((number) => {
    const name = make("button", { type: "button", className: `name ${itemOf(number).kind}`, tabIndex: -1, dir: "auto", textContent: itemText(itemOf(number)), "aria-hidden": "true" });
    name.addEventListener("click", () => choose({ word: number }));
    name.dataset.item = number;
    return name;
  });
  const scale = window.devicePixelRatio || 1;
  const canvas = make("canvas", { role: "img",
    "aria-label": `How much each word reads ${regionName()}, by layer. ${strongestReader()}` });
  const strip = make("div", { className: "cells" }, canvas, make("i", { className: "mark" }));
  strip.style.height = canvas.style.height = `${LINE * alone.length}px`;
  find("readers").replaceChildren(make("div", { className: "names" }, ...names), strip);
  const spotIn = (event) => {
    const area = canvas.getBoundingClientRect();
    const layer = Math.floor((event.clientX - area.left) / area.width * head.layers);
    const place = Math.floor((event.clientY - area.top) / LINE);
    return { layer: Math.max(0, Math.min(head.layers - 1, layer)), word: alone[Math.max(0, Math.min(alone.length - 1, place))] };
  };
  canvas.addEventListener("click", (event) => choose(spotIn(event)));
  canvas.addEventListener("pointermove", (event) => tellReader(spotIn(event)));
  canvas.addEventListener("pointerleave", () => tellReader());
  const context = canvas.getContext("2d");
  canvas.width = Math.round(strip.clientWidth * scale);
  canvas.height = Math.round(LINE * alone.length * scale);
  const across = canvas.width / head.layers, down = canvas.height / alone.length;
  alone.forEach((number, place) => {
    readers.values[itemOf(number).row].forEach((value, layer) => {
      context.fillStyle = value === null ? "#9994" : colour(readers.top > 0 ? value / readers.top : 0);
      const [x, y] = [Math.round(layer * across), Math.round(place * down)];
      context.fillRect(x, y, Math.round((layer + 1) * across) - x, Math.round((place + 1) * down) - y - (value === null ? 0 : Math.round(scale)));
    });
  });
  const every = Math.ceil(head.layers / 10);
  find("reader-layers").replaceChildren(...d3.range(head.layers).map((layer) => make("span", { textContent: layer % every === 0 ? String(layer) : "" })));
  find("reader-scale").textContent = readers.top > 0 ? `Brightest: ${percent(readers.top)} of a word's attention. Dark: none.` : "";
  markReaders();
}

function strongestReader() {
  let best = null;
  for (const [number, item] of head.words.items.entries()) {
    if (item.row < 0) continue;
    readers.values[item.row].forEach((value, layer) => {
      if (value !== null && value > (best?.value ?? 0)) best = { number, layer, value };
    });
  }
  return best === null ? "" : `Most of all ${wordName(best.number)} at layer ${best.layer}: ${percent(best.value)} of its attention.`;
}

function tellReader(spot = null) {
  const text = spot === null ? strongestReader()
    : `${wordName(spot.word)} at layer ${spot.layer}: ${percent(readers.values[itemOf(spot.word).row][spot.layer])} of its attention on ${regionName()}.`;
  find("reader-says").textContent = text;
}

function markReaders() {
  const mark = find("readers").querySelector(".mark");
  if (mark === null) return;
  mark.style.left = `${(100 * choice.layer) / head.layers}%`;
  mark.style.width = `${100 / head.layers}%`;
  const box = find("readers");
  for (const name of box.querySelectorAll(".name")) {
    const own = Number(name.dataset.item) === choice.word;
    name.classList.toggle("current", own);
    // the strip scrolls to the chosen word, the page does not
    if (own && (name.offsetTop < box.scrollTop || name.offsetTop + LINE > box.scrollTop + box.clientHeight)) box.scrollTop = name.offsetTop - box.clientHeight / 2;
  }
}

// What the chosen word reads, layer by layer.
function showWordChart() {
  const { row: number } = itemOf(choice.word);
  const layers = d3.range(head.layers);
  const shares = layers.map((layer) => reading.of(number, layer));
  const kinds = ["system", "image", "user", "answer"];
  const series = kinds.map((kind) => ({
    ...SERIES[kind], name: kind,
    label: { system: "before", image: "picture", user: "question", answer: "answer" }[kind],
    values: shares.map((share) => (share === null ? null : d3.sum(head.words.items, (item, i) => (ITEM_SERIES[item.kind] === kind ? share[i] : 0)))),
  })).filter(({ values }) => values.some((value) => value > 0));
  if (choice.region !== null) {
    series.push({ name: "region", label: "region", colour: "var(--ink)", dash: "3 3", symbol: "star", values: readers.values[number] });
  }
  if (series.length === 0) nothing("word-chart", "No attention in any layer.");
  else {
    layerChart(find("word-chart"), { series, format: percent, yLabel: "share of attention", domain: [0, 1], always: true,
      summary: `What ${wordName(choice.word)} reads, by layer. ${series.map(({ label, values }) => `${label}: ${percent(values[0])} at layer 0, ${percent(values.at(-1))} at the last`).join("; ")}.` });
  }
}
