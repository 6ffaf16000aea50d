// Running through the layers: everything on the page that follows the layer moves.

const still = matchMedia("(prefers-reduced-motion: reduce)");
let clock = null;
let played = -1; // the layer that the player showed last

const perLayer = () => Math.max(280, Math.min(800, 10000 / head.layers));

function showPlay() {
  const running = clock !== null;
  for (const button of document.querySelectorAll(".play")) {
    button.textContent = running ? "Pause" : still.matches ? "Next layer" : choice.layer === head.layers - 1 ? "Play again" : "Play the layers";
    button.setAttribute("aria-pressed", String(running));
    button.classList.toggle("running", running);
  }
}

function pause() {
  clearTimeout(clock);
  clock = null;
  showPlay();
}

function advance() {
  const last = head.layers - 1;
  if (choice.layer === last) return pause();
  played = choice.layer + 1;
  choose({ layer: played });
  // at the end the player stops
  if (played === last) return pause();
  clock = setTimeout(advance, perLayer());
  return undefined;
}

function play() {
  if (clock !== null) return pause();
  const atEnd = choice.layer === head.layers - 1;
  // who asked for little motion goes on by hand, layer by layer
  if (still.matches) return choose({ layer: atEnd ? 0 : choice.layer + 1 });
  played = atEnd ? 0 : choice.layer;
  choose({ layer: played });
  clock = setTimeout(advance, perLayer());
  return showPlay();
}

function offerPlay() {
  closing.signal.addEventListener("abort", () => clearTimeout(clock));
  for (const button of document.querySelectorAll(".play")) {
    button.hidden = head.layers < 2;
    button.addEventListener("click", play);
  }
  // a layer chosen by hand stops the player
  follow(["layer"], () => (clock !== null && choice.layer !== played ? pause() : showPlay()));
  still.addEventListener("change", pause, { signal: closing.signal });
  document.addEventListener("keydown", (event) => {
    if (event.key !== " " || event.defaultPrevented || event.ctrlKey || event.altKey || event.metaKey || event.shiftKey) return;
    if (event.target.closest("button, input, select, textarea, summary, a, pre, .table-box")) return;
    const area = find("interaction").getBoundingClientRect();
    // where the interaction is out of sight, space scrolls as everywhere
    if (area.bottom < 0 || area.top > window.innerHeight) return;
    event.preventDefault();
    play();
  }, { signal: closing.signal });
  showPlay();
}

function offerWordLayer() {
  const slider = find("word-layer");
  slider.addEventListener("input", () => choose({ layer: Number(slider.value) }));
  const show = () => {
    slider.value = choice.layer;
    find("word-layer-value").textContent = `${choice.layer} of 0–${head.layers - 1}`;
  };
  follow(["layer"], show);
  show();
}

async function offerInteraction() {
  if (find("interaction") === null) return;
  await reading.open();
  const first = head.words.items.findIndex(({ kind, row: number }) => kind === "answer" && number >= 0);
  choice.word = first >= 0 ? first : head.words.items.findIndex(({ row: number }) => number >= 0);
  layPanels();
  laySequence();
  offerWordLayer();
  offerPlay();
  offerRemoved();
  follow(["word", "layer", "reach", "steps", "opacity", "view", "removed"], showWordMap);
  follow(["word", "layer"], () => {
    showSequence();
    markReaders();
  });
  follow(["layer"], showBars);
  follow(["region", "view"], showReaders);
  follow(["word"], showWordChart);
  // an answer token that is chosen above is the word, too
  follow(["target"], () => {
    const number = head.words.items.findIndex(({ kind, target, row: own }) => kind === "answer" && target === choice.target && own >= 0);
    if (number >= 0) choose({ word: number });
  });
  showSequence();
  await Promise.all([showWordMap(), showReaders()]);
}
