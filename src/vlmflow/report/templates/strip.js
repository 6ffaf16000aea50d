// A small map per layer, in a row: where the signal goes from shallow to deep.

async function showStrip() {
  const signal = choice.signal;
  const hide = head.signals.length === 0 || isSummed(signal) || !numbers.hasMap(choice.target) || head.grids.length === 0 || head.layers < 2;
  find("strip-part").hidden = hide;
  if (hide) return;
  const target = choice.target;
  const block = await numbers.mapsOf(target);
  if (signal !== choice.signal || target !== choice.target) return;
  const number = head.grids.findIndex((grid) => isInView(grid));
  const tops = d3.range(head.layers).map((layer) => (numbers.flag(signal, layer, target) === 0 ? block[`${signal}.top`].values[layer] : 0));
  find("strip").replaceChildren(...tops.map((top, layer) => thumbnail(block, signal, layer, number, choice.reach === "all" ? d3.max(tops) : top)));
  markStrip();
}

// Pointers only: the layer slider does the same for the keyboard.
function thumbnail(block, signal, layer, number, top) {
  const grid = head.grids[number];
  const canvas = make("canvas", { width: grid.columns, height: grid.rows });
  const flag = numbers.flag(signal, layer, choice.target);
  const frame = make("button", { type: "button", className: "thumbnail", tabIndex: -1,
    title: flag === 0 ? `layer ${layer}` : `layer ${layer}: ${FLAG_WORDS[flag]}`, "aria-hidden": "true" },
    canvas, make("span", { textContent: String(layer) }));
  frame.classList.toggle("blank", flag !== 0);
  frame.addEventListener("click", () => choose({ layer }));
  if (flag === 0) {
    const values = row(block, signal, layer);
    const context = canvas.getContext("2d");
    const pixels = context.createImageData(grid.columns, grid.rows);
    numbers.curves[`grid${number}.columns`].values.forEach((index, place) => {
      const share = top > 0 ? values[index] / top : 0;
      const { r, g, b } = d3.rgb(colour(choice.steps === "root" ? Math.sqrt(share) : share));
      pixels.data.set([r, g, b, 255], 4 * place);
    });
    context.putImageData(pixels, 0, 0);
  }
  return frame;
}

function markStrip() {
  [...find("strip").children].forEach((frame, layer) => frame.classList.toggle("current", layer === choice.layer));
}
