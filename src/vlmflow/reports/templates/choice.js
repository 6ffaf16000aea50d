// What the reader has chosen. Parts of the page follow it; nothing else is shared between them.

const COMBINED = "combined"; // all grids of a picture together

const choice = {
  signal: "",
  layer: 0,
  target: 0,
  reach: "layer", // colours scaled to the largest value of "layer" or of "all" layers
  steps: "linear", // colour steps "linear" or "root"
  look: "fill", // the map as colours that "fill" its tokens, or as an "outline" of the strongest
  opacity: 0.75,
  view: COMBINED, // or one kind of grid, where a picture has several
  figure: "mean", // saliency flow: "mean" over pairs or "sum"
  destination: "answer",
  arcs: "attention",
  shallow: 0,
  deep: 0,
  scale: "values", // of two maps side by side: "values" as measured, or "shares" of each map
  removed: "show", // "show" or "hide" what a truncated run no longer had
  tested: "0", // which of the tested maps, by number
  word: -1, // the item of the sequence whose reading is shown
  region: null, // of a picture, { image, box } in its pixels; null: all of them
};

const followers = [];
let pending = null;

function follow(names, show) {
  followers.push({ names: new Set(names), show });
}

function choose(changes) {
  const changed = Object.keys(changes).filter((name) => choice[name] !== changes[name]);
  Object.assign(choice, changes);
  if (changed.length === 0) return;
  if (pending === null) {
    // several changes within one frame are shown once
    pending = new Set();
    document.body.ariaBusy = "true";
    requestAnimationFrame(async () => {
      const names = pending;
      pending = null;
      if (closing.signal.aborted) return;
      const concerned = followers.filter(({ names: wanted }) => [...names].some((name) => wanted.has(name)));
      await Promise.all(concerned.map(({ show }) => show()));
      if (pending === null) document.body.ariaBusy = "false";
    });
  }
  for (const name of changed) pending.add(name);
}

// A result without maps has no signal at all.
const isSummed = (signal) => (head.about[signal]?.summed ?? null) !== null;
const mapLayer = () => (isSummed(choice.signal) ? 0 : choice.layer);
