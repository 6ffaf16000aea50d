// The prompt and the answer as a line of words, with arcs from the chosen word to what it reads.

const ARCS = 14; // at most, of at least one per cent
const THICKEST = 16; // pixels, for all of a word's attention

function laySequence() {
  const place = find("sequence");
  const gaps = head.words.items.some(({ kind, text }) => (kind === "word" || kind === "answer") && startsWord(text));
  head.words.items.forEach((item, number) => {
    const text = itemText(item);
    const alone = item.row >= 0;
    const element = make(alone ? "button" : "span", { className: `item ${item.kind} ${ITEM_SERIES[item.kind]}` },
      make("span", { className: "text", dir: "auto", textContent: text }),
      make("span", { className: "share" }), make("i", { className: "bar" }));
    const before = itemOf(number - 1);
    const glued = gaps && alone && /^[\p{L}\p{N}\p{M}]/u.test(item.text) && before?.kind === item.kind && !/[\s>]$/.test(before.text);
    element.classList.toggle("glued", glued);
    if (alone) {
      Object.assign(element, { type: "button", tabIndex: -1 });
      element.setAttribute("role", "radio");
      element.setAttribute("aria-label", item.kind === "answer" ? `${tokenWords()} ${item.target}: ${text}` : `word: ${text}`);
      element.addEventListener("click", () => choose({ word: number }));
    } else element.title = `${item.count} token${item.count === 1 ? "" : "s"}`;
    element.dataset.item = number;
    if (item.kind === "answer" && itemOf(number - 1)?.kind !== "answer") place.append(make("span", { className: "turn", textContent: head.subject ? "explained" : "answer" }));
    place.append(element);
    // a question of several lines stays one
    if (item.kind === "word" && number > 0 && itemOf(number - 1).row >= 0 && /^\s*\n\s*$/.test(item.text)) place.append(make("span", { className: "break" }));
  });
  place.addEventListener("keydown", (event) => {
    const step = { ArrowLeft: -1, ArrowUp: -1, ArrowRight: 1, ArrowDown: 1 }[event.key];
    if (!step || event.shiftKey) return;
    event.preventDefault();
    event.stopPropagation();
    stepWord(step);
    wordElement(choice.word).focus();
  });
  onResize(place, showWordArcs);
}

const wordElement = (number) => find("sequence").querySelector(`[data-item="${number}"]`);

function stepWord(step) {
  const alone = d3.range(head.words.items.length).filter((number) => itemOf(number).row >= 0);
  const goal = alone[alone.indexOf(choice.word) + step];
  if (goal !== undefined) choose({ word: goal });
}

function showSequence() {
  const share = reading.of(itemOf(choice.word).row, choice.layer);
  head.words.items.forEach((item, number) => {
    const element = wordElement(number);
    const own = number === choice.word;
    if (item.row >= 0) {
      element.setAttribute("aria-checked", String(own));
      element.tabIndex = own ? 0 : -1;
    }
    const value = share?.[number] ?? 0;
    element.querySelector(".share").textContent = value >= 0.01 ? `${Math.round(100 * value)}%` : "";
  });
  find("word-says").textContent = `${wordName(choice.word)}, layer ${choice.layer}`;
  showWordArcs();
}

function showWordArcs() {
  const place = find("sequence"), svg = find("word-arcs");
  const area = place.getBoundingClientRect();
  const share = reading.of(itemOf(choice.word).row, choice.layer);
  const topOf = (number) => {
    const box = wordElement(number).getBoundingClientRect();
    return [box.left + box.width / 2 - area.left, box.top - area.top];
  };
  const read = share === null ? [] : d3.sort(d3.range(share.length), (number) => -share[number]).filter((number) => share[number] >= 0.01 && number !== choice.word).slice(0, ARCS);
  const [x1, y1] = topOf(choice.word);
  const arcs = d3.select(svg).attr("width", area.width).attr("height", area.height).selectAll("path").data(read, (number) => number);
  arcs.join("path").attr("fill", "none").attr("stroke", (number) => `var(--${ITEM_SERIES[itemOf(number).kind]})`)
    .attr("stroke-width", (number) => Math.max(1, THICKEST * share[number]))
    .attr("data-to", (number) => number)
    .attr("d", (number) => {
      const [x0, y0] = topOf(number);
      const rise = Math.min(34, 10 + 0.12 * Math.abs(x1 - x0)) + 0.15 * Math.abs(y1 - y0);
      const bend = Math.abs(y1 - y0) < 4 ? 0 : 0.2 * (x0 - x1);
      return `M${x1},${y1} C${x1 + bend},${y1 - rise} ${x0 - bend},${y0 - rise} ${x0},${y0}`;
    });
}

// Bars under the words: how much each reads the region at this layer, on one scale for all layers.
function showBars() {
  if (readers.values.length === 0) return; // not decoded yet
  head.words.items.forEach((item, number) => {
    const value = item.row < 0 ? null : readers.values[item.row][choice.layer];
    const bar = wordElement(number).querySelector(".bar");
    bar.style.opacity = value === null || readers.top === 0 ? 0 : value / readers.top;
  });
}
