// What a truncated run of the same prompt saw of the pictures, layer by layer.

const removal = {
  seen: null, // (layers, image tokens): 1 where a layer took the token

  async open() {
    if (head.truncated !== null) this.seen = (await unpack(head.truncated.seen)).seen;
  },
  removed(layer, index) {
    return this.seen.values[layer * this.seen.shape[1] + index] === 0;
  },
};

// Cross out the tokens that the truncated run no longer had at a layer.
function crossOut(context, canvas, picture, cells, layer) {
  if (removal.seen === null || choice.removed === "hide") return;
  const scale = window.devicePixelRatio || 1;
  const path = new Path2D(), lines = new Path2D();
  for (const cell of cells) {
    if (!cell.indices.every((index) => removal.removed(layer, index))) continue;
    const [left, right] = [cell.box[0], cell.box[2]].map((x) => Math.round((x / picture.width) * canvas.width));
    const [upper, lower] = [cell.box[1], cell.box[3]].map((y) => Math.round((y / picture.height) * canvas.height));
    path.rect(left, upper, right - left, lower - upper);
    lines.moveTo(left, lower);
    lines.lineTo(right, upper);
  }
  context.fillStyle = "rgba(28, 30, 36, .68)";
  context.fill(path);
  context.strokeStyle = "rgba(255, 255, 255, .38)";
  context.lineWidth = scale;
  context.stroke(lines);
}

function offerRemoved() {
  if (removal.seen === null || find("removed-part") === null) return;
  radios(find("removed-choice"), "removed", [["show", "cross out what was removed"], ["hide", "hide that"]]);
  const tokens = removal.seen.shape[1];
  find("seen-bars").replaceChildren(...head.truncated.counts.map((count, layer) => {
    const bar = make("i", {});
    bar.style.height = `${(100 * count) / tokens}%`;
    const button = make("button", { type: "button", tabIndex: -1, title: `layer ${layer}: ${count} of ${tokens} image tokens` }, bar);
    button.addEventListener("click", () => choose({ layer }));
    return button;
  }));
  follow(["word", "layer", "removed"], tellRemoved);
}

function tellRemoved() {
  if (removal.seen === null || find("removed-part") === null) return;
  const { counts } = head.truncated;
  const tokens = removal.seen.shape[1];
  const layer = choice.layer;
  [...find("seen-bars").children].forEach((bar, number) => bar.classList.toggle("current", number === layer));
  let lost = "";
  if (wordMap.values !== null && wordMap.layer === layer && wordMap.word === choice.word && counts[layer] < tokens) {
    const sum = d3.sum(wordMap.values);
    const gone = d3.sum(wordMap.values, (value, index) => (removal.removed(layer, index) ? value : 0));
    if (sum > 0) lost = ` What it lacks holds ${percent(gone / sum)} of what ${wordName(choice.word)} reads of the picture here in the untouched run.`;
  }
  find("removed-says").textContent = `Layer ${layer} of the truncated run sees ${counts[layer]} of ${tokens} image tokens.${lost}`;
}

// The pictures alone, with what the truncated run no longer had at the layer chosen.
function layRemoved(place) {
  const shownStages = head.pictures.map((picture, image) => {
    const canvas = make("canvas", { "aria-hidden": "true" });
    const alt = `${picture.frames || (head.pictures.length > 1 ? `picture ${image + 1}` : "the picture")}, removed image tokens crossed out`;
    const frame = make("div", { className: "frame" }, make("img", { src: picture.source, alt }), canvas);
    const ratio = picture.width / picture.height;
    frame.style.aspectRatio = String(ratio);
    frame.style.setProperty("--ratio", String(ratio));
    const paintRemoved = () => {
      const scale = window.devicePixelRatio || 1;
      canvas.width = Math.round(frame.clientWidth * scale);
      canvas.height = Math.round(frame.clientHeight * scale);
      crossOut(canvas.getContext("2d"), canvas, picture, tokensOf(image), choice.layer);
    };
    onResize(frame, paintRemoved);
    follow(["layer", "removed", "view"], paintRemoved);
    return make("figure", { className: "stage" }, frame);
  });
  place.replaceChildren(...shownStages);
}
