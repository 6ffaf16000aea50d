// A small map per layer, in a row: where the signal goes from shallow to deep.

const SIDE = 120; // the longest that a small map is shown, in the page's pixels

async function showStrip() {
  const signal = choice.signal;
  const hide = head.signals.length === 0 || isSummed(signal) || !numbers.hasMap(choice.target) || head.grids.length === 0 || head.layers < 2;
  find("strip-part").hidden = hide;
  if (hide) return;
  const target = choice.target;
  const block = await numbers.mapsOf(target);
  if (signal !== choice.signal || target !== choice.target) return;
  const tokens = tokensOf(head.grids[0].image);
  const drawnTops = topsOf(block, signal);
  const tops = d3.range(head.layers).map((layer) => (numbers.flag(signal, layer, target) === 0 ? drawnTops[layer] : 0));
  find("strip").replaceChildren(...tops.map((top, layer) => thumbnail(block, signal, layer, tokens, choice.reach === "all" ? d3.max(tops) : top)));
  markStrip();
}

// Pointers only: the layer slider does the same for the keyboard.
function thumbnail(block, signal, layer, tokens, top) {
  const [left, right] = d3.extent(tokens.flatMap(({ box }) => [box[0], box[2]]));
  const [upper, lower] = d3.extent(tokens.flatMap(({ box }) => [box[1], box[3]]));
  const scale = (SIDE * (window.devicePixelRatio || 1)) / Math.max(right - left, lower - upper);
  const canvas = make("canvas", { width: Math.ceil((right - left) * scale), height: Math.ceil((lower - upper) * scale) });
  const flag = numbers.flag(signal, layer, choice.target);
  const frame = make("button", { type: "button", className: "thumbnail", tabIndex: -1,
    title: flag === 0 ? `layer ${layer}` : `layer ${layer}: ${FLAG_WORDS[flag]}`, "aria-hidden": "true" },
    canvas, make("span", { textContent: String(layer) }));
  frame.classList.toggle("blank", flag !== 0);
  frame.addEventListener("click", () => choose({ layer }));
  if (flag === 0) {
    const values = row(block, signal, layer);
    const context = canvas.getContext("2d");
    for (const token of tokens) {
      const share = top > 0 ? valueOf(token, values) / top : 0;
      // edges are rounded to pixels, so that neighbours share them without a seam
      const [x0, y0, x1, y1] = token.box.map((edge, side) => Math.round((edge - (side % 2 ? upper : left)) * scale));
      context.fillStyle = colour(choice.steps === "root" ? Math.sqrt(share) : share);
      context.fillRect(x0, y0, x1 - x0, y1 - y0);
    }
  }
  return frame;
}

function markStrip() {
  [...find("strip").children].forEach((frame, layer) => frame.classList.toggle("current", layer === choice.layer));
}
