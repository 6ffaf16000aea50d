// Opening the page: read the numbers, choose where to begin, draw, and follow the reader.

const head = JSON.parse(find("head").textContent);

async function start() {
  await numbers.open();
  await removal.open();
  const layered = head.signals.filter((signal) => !isSummed(signal));
  choice.signal = head.shown;
  choice.deep = head.layers - 1;
  // the layer where the image counts most is the one to begin with
  const image = d3.range(head.layers).map((layer) => numbers.attention(layer, 0)?.[1] ?? 0);
  choice.layer = layered.length > 0 ? d3.maxIndex(image) : 0;

  offerTokens();
  offerSignals();
  offerLayer();
  offerViews();
  offerColours();
  offerArcs();
  if (numbers.hasSaliency()) {
    radios(find("saliency-figure"), "figure", [["mean", "mean per pair"], ["sum", "sum"]]);
    radios(find("saliency-destination"), "destination", [["answer", head.subject ? "into the words" : "into the answer"], ["user", "into the user text"]]);
  }
  offerTable();
  listenToKeys();
  layPictures();

  offerTrust();

  follow(["target"], showVerdict);
  follow(["signal", "layer", "target", "reach", "steps", "opacity", "look", "view", "removed"], showMap);
  follow(["signal", "target", "reach", "steps", "view"], showStrip);
  follow(["target"], showAttention);
  follow(["target", "figure", "destination"], showSaliency);
  follow(["target"], showConvergence);
  follow(["target", "arcs", "shallow", "deep"], showArcs);
  follow(["signal", "target", "figure", "destination"], showTable);
  follow(["layer", "signal"], () => {
    markLayerInCharts();
    markStrip();
    markRow();
  });

  const charts = () => {
    showAttention();
    showSaliency();
    showConvergence();
    showArcs();
  };
  showVerdict();
  charts();
  showTable();
  await Promise.all([showMap(), showStrip(), offerInteraction(), offerCompare()]);
  let width = document.body.clientWidth;
  onResize(document.body, () => {
    if (document.body.clientWidth === width) return;
    width = document.body.clientWidth;
    requestAnimationFrame(() => {
      if (closing.signal.aborted) return;
      charts();
      if (find("trust") !== null) showTrust();
      if (choice.word >= 0) showReaders();
    });
  });
  document.body.dataset.ready = "yes";
}

function openReport() {
  return start().catch((error) => {
    find("trouble").hidden = false;
    find("trouble").textContent = `This page could not be drawn (${error.message}). A browser from 2023 or later is needed.`;
  });
}

function closeReport() {
  closing.abort();
}
