// Two maps side by side on one scale: two signals, two layers, two answers, of one result or of two.

const sources = [numbers]; // the page's own result, and the one beside it
const sides = []; // two: { number, panels, says }

const sideChoice = (number) => ({
  source: sources[Number(choice[`source${number}`])] ?? numbers,
  signal: choice[`signal${number}`], layer: Number(choice[`layer${number}`]), target: Number(choice[`target${number}`]),
});
const isSummedIn = (source, signal) => (source.head.about[signal]?.summed ?? null) !== null;

async function offerCompare() {
  if (find("compare") === null) return;
  if (head.other !== null) {
    const other = numbersOf(() => head.other);
    await other.open();
    sources.push(other);
  }
  const two = sources.length > 1;
  const layered = head.signals.filter((signal) => !isSummed(signal));
  const same = two ? head.signals.find((signal) => isSummed(signal) && head.other.signals.includes(signal)) : undefined;
  const first = same ?? layered[0] ?? head.signals[0];
  // two results by the same map; one by its layer of most attention to the image and its last one, or by two signals
  Object.assign(choice, { source0: "0", source1: two ? "1" : "0", target0: "0", target1: "0", layer0: String(choice.layer), signal0: first });
  const second = two ? (head.other.signals.includes(first) ? first : head.other.signals[0]) : head.layers > 1 && layered.length > 0 ? first : head.signals[1] ?? first;
  Object.assign(choice, { signal1: second, layer1: String(two ? Math.min(choice.layer, head.other.layers - 1) : head.layers - 1) });
  for (const number of [0, 1]) laySide(number);
  choice.scale = choice.signal0 === choice.signal1 && !two ? "values" : "shares";
  radios(find("compare-scale"), "scale", [["values", "values as measured"], ["shares", "share of each map"]]);
  const names = [0, 1].flatMap((number) => ["source", "signal", "layer", "target"].map((name) => `${name}${number}`));
  follow([...names, "scale", "steps", "opacity", "view", "removed"], showCompare);
  await showCompare();
}

function laySide(number) {
  const place = find(`side${number}`);
  const selects = make("div", { className: "selects" });
  const panels = make("div", { className: "pictures" });
  const says = make("p", { className: "readout" });
  place.replaceChildren(selects, panels, says);
  const side = { number, stages: [], says, place: panels };
  sides[number] = side;
  const fill = () => {
    const { source } = sideChoice(number);
    const own = source.head;
    const offers = {
      source: sources.map(({ head: own }, i) => [String(i), `${i + 1}: ${own.answer || "answer"}`]),
      signal: own.signals.map((signal) => [signal, own.about[signal]?.label ?? signal]),
      layer: d3.range(own.layers).map((layer) => [String(layer), `layer ${layer}`]),
      target: own.targets.slice(0, own.charted).map((target, i) => [String(i), i === 0 ? "whole answer" : `${i}: ${tokenText(target)}`]),
    };
    if (sources.length < 2) delete offers.source;
    selects.replaceChildren(...Object.entries(offers).map(([name, options]) => selectFor(number, name, options)));
    layCompared(side, source);
  };
  follow([`source${number}`], () => {
    const own = sideChoice(number).source.head;
    // what the other result lacks falls back to what it has
    if (!own.signals.includes(choice[`signal${number}`])) choice[`signal${number}`] = own.signals[0];
    choice[`layer${number}`] = String(Math.min(Number(choice[`layer${number}`]), own.layers - 1));
    choice[`target${number}`] = "0";
    fill();
  });
  fill();
}

function selectFor(number, name, options) {
  const key = `${name}${number}`;
  const words = { source: "Result", signal: "Signal", layer: "Layer", target: "Answer" }[name];
  const select = make("select", { "aria-label": `${words}, ${number === 0 ? "left" : "right"}` }, ...options.map(([value, text]) => make("option", { value, textContent: text })));
  select.dataset.name = key;
  select.value = choice[key];
  select.addEventListener("change", () => choose({ [key]: select.value }));
  return select;
}

function layCompared(side, source) {
  side.stages = source.head.pictures.map((picture, image) => {
    const label = picture.frames || (source.head.pictures.length > 1 ? `picture ${image + 1}` : "");
    // a picture that both results are about is in the page once
    const photo = make("img", { src: picture.source || head.pictures[image].source, alt: label || "the picture asked about" });
    const canvas = make("canvas", { role: "img", "aria-label": "" });
    const message = make("p", { className: "message", hidden: true });
    const frame = make("div", { className: "frame" }, photo, canvas, message);
    frame.style.aspectRatio = String(picture.width / picture.height);
    frame.style.setProperty("--ratio", String(picture.width / picture.height));
    const stage = { canvas, picture, image, message, frame };
    onResize(frame, () => paintCompared(side, stage));
    return { ...stage, figure: make("figure", { className: "stage" }, frame, ...(label ? [make("figcaption", { textContent: label })] : [])) };
  });
  side.place.replaceChildren(...side.stages.map(({ figure: own }) => own));
}

function whyNothing({ source, signal, layer, target }) {
  if (source.head.grids.length === 0) return source.head.gridsMissing || "Which pixels an image token sees is not known for this model.";
  if (!source.hasMap(target)) return "The map of this token is not in this page, to keep it small.";
  const flag = source.flag(signal, isSummedIn(source, signal) ? 0 : layer, target);
  return flag === 0 ? null : flagReason(flag, layer);
}

async function comparedMap(chosen) {
  const why = whyNothing(chosen);
  if (why !== null) return { why, values: null };
  const { source, signal, layer, target } = chosen;
  const values = row(await source.mapsOf(target), signal, isSummedIn(source, signal) ? 0 : layer);
  const mass = d3.sum(values);
  return { why: null, values: choice.scale === "shares" && mass > 0 ? values.map((value) => value / mass) : values };
}

async function showCompare() {
  const chosen = [0, 1].map(sideChoice);
  const wanted = JSON.stringify([0, 1].map((number) => ["source", "signal", "layer", "target"].map((name) => choice[`${name}${number}`])));
  const maps = await Promise.all(chosen.map(comparedMap));
  if (wanted !== JSON.stringify([0, 1].map((number) => ["source", "signal", "layer", "target"].map((name) => choice[`${name}${number}`])))) return;
  const largestOf = (number) => (maps[number].values === null ? 0 : d3.max(chosen[number].source.head.pictures.flatMap((_, image) => tokensOf(image, chosen[number].source)), (cell) => valueOf(cell, maps[number].values)) ?? 0);
  const tops = [largestOf(0), largestOf(1)];
  const top = Math.max(...tops);
  sides.forEach((side, number) => {
    const { source, signal, layer, target } = chosen[number];
    Object.assign(side, { source, map: { values: maps[number].values, top } });
    const about = source.head.about[signal] ?? { label: signal };
    const where = !isSummedIn(source, signal) ? `layer ${layer}` : about.whole ? "the whole model" : `summed over layers ${about.summed.join("–")}`;
    const words = source.head.subject;
    const of = target === 0 ? words || "the whole answer" : `${words ? "token" : "answer token"} ${target}, “${tokenText(source.head.targets[target])}”`;
    const subject = sources.length > 1 ? ` (“${source.head.answer}” to “${source.head.question}”, ${source.head.model})` : "";
    const name = `${about.label}, ${where}, for ${of}${subject}`;
    side.says.textContent = `${asSentence(name)}${maps[number].values === null ? "" : ` Largest value ${figure(tops[number])}.`}`;
    for (const stage of side.stages) {
      stage.message.textContent = maps[number].why ?? "";
      stage.message.hidden = maps[number].why === null;
      stage.frame.classList.toggle("nothing", maps[number].why !== null);
      stage.canvas.setAttribute("aria-label", name);
      paintCompared(side, stage);
    }
    for (const select of find(`side${number}`).querySelectorAll("select")) {
      select.value = choice[select.dataset.name];
      // a sum over layers has no layer to choose
      if (select.dataset.name.startsWith("layer")) select.hidden = isSummedIn(source, signal);
    }
  });
  comparedLegend(top);
  find("compare-says").textContent = comparedWords(chosen, maps);
}

function paintCompared(side, { canvas, picture, image }) {
  const scale = window.devicePixelRatio || 1;
  canvas.width = Math.max(1, Math.round(canvas.clientWidth * scale));
  canvas.height = Math.max(1, Math.round(canvas.clientHeight * scale));
  if (!side.map?.values) return;
  const context = canvas.getContext("2d"), cells = tokensOf(image, side.source);
  paintCells(context, canvas, picture, cells, side.map);
  const { signal, layer } = sideChoice(side.number);
  if (side.source === numbers && !isSummed(signal)) crossOut(context, canvas, picture, cells, layer);
}

function comparedLegend(top) {
  const place = find("compare-legend");
  if (top === 0) return place.replaceChildren(make("p", { className: "hint", textContent: "No map, no colours." }));
  return place.replaceChildren(drawn(Plot.legend({
    color: { type: choice.steps === "root" ? "sqrt" : "linear", domain: [0, top], interpolate: colour,
      label: choice.scale === "shares" ? "share of its map, per image token" : "value per image token" },
    className: "chart", width: 280, height: 50, marginLeft: 8, marginRight: 34, tickSize: 4,
    ticks: [0, choice.steps === "root" ? top / 4 : top / 2, top], tickFormat: figure,
  })));
}

// How many of the strongest tenth of image tokens both maps have; of maps over the same tokens only.
function comparedWords(chosen, maps) {
  if (maps.some(({ values }) => values === null)) return "";
  const [left, right] = maps.map(({ values }) => values);
  const alike = left.length === right.length && JSON.stringify(chosen[0].source.head.grids) === JSON.stringify(chosen[1].source.head.grids);
  const units = choice.scale === "values" && chosen[0].signal !== chosen[1].signal ? " The two signals have units of their own: compare shares." : "";
  if (!alike) return units.trim();
  const count = Math.ceil(0.1 * left.length - 1e-9);
  const strongestOf = (values) => new Set(d3.sort(d3.range(values.length), (i) => -values[i]).slice(0, count));
  const [a, b] = [strongestOf(left), strongestOf(right)];
  const both = [...a].filter((token) => b.has(token)).length;
  return `Of the strongest 10\u00a0% of image tokens (${count}), ${both} are the same in both; by chance it would be ${figure(count * count / left.length)}.${units}`;
}
