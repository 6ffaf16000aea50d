// What removing all image tokens from each layer on does to the answer, and where the cliff is.

function offerCurve() {
  find("curve-go").addEventListener("click", async () => {
    const ended = await work(`/answers/${open.answer}/removal`, {}, "curve-work");
    if (!ended?.done) return;
    open.summary = await (await request(`/answers/${open.answer}/summary`)).json();
    showCurve();
  });
}

function showCurve() {
  const curve = open.summary.removal;
  find("curve").hidden = curve === null;
  if (curve === null) return;
  const { cliff, answer_cliff: answerCliff, tolerance, layers } = curve;
  const free = cliff === null
    ? `There is no cliff: even after the last layers, removal changes the answer's probabilities by more than ${tolerance} nats.`
    : cliff === 0 ? `The picture changes next to nothing here: without any image token the answer's probabilities stay within ${tolerance} nats.`
      : `The cliff is at layer ${cliff}: from there on all image tokens can go, and the answer's probabilities stay within ${tolerance} nats.`;
  const same = answerCliff === null ? "No layer leaves the answer as it was." : `The answer itself stays the same from layer ${answerCliff} on.`;
  find("curve-says").textContent = `${free} ${same}`;
  const at = (values) => {
    const byLayer = new Map(layers.map((layer, number) => [layer, values[number]]));
    return Array.from({ length: open.report.head.layers }, (_, layer) => byLayer.get(layer) ?? null);
  };
  const nats = (value) => (value === null ? "–" : value.toPrecision(2));
  const drawing = (id, name, values, more) => {
    const series = [{ name, label: name, colour: "var(--image)", dash: "", symbol: "circle", values: at(values) }];
    const summary = `${name} by layer: ${values.map((value, number) => `layer ${layers[number]}: ${more.format(value)}`).join(", ")}.`;
    open.report.layerChart(find(id), { series, summary, always: true, ...more });
    if (cliff !== null) markCliff(find(id).querySelector("svg"), cliff);
  };
  drawing("curve-kl", "KL", curve.kl, { format: nats, yLabel: "mean KL, nats", even: tolerance });
  drawing("curve-agreement", "same tokens", curve.agreement, { format: share, yLabel: "share of the answer's tokens", domain: [0, 1] });
}

function markCliff(chart, layer) {
  const x = chart.scale("x").apply(layer);
  const [low, high] = chart.scale("y").range;
  const mark = d3.select(chart).append("g").attr("class", "cliff-mark").attr("transform", `translate(${x},0)`);
  mark.append("line").attr("y1", low).attr("y2", high);
  mark.append("text").attr("x", 6).attr("y", high + 26).attr("text-anchor", "start").text("cliff");
}
