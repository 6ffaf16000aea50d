// Curves over layers: attention flow, saliency flow, convergence.

function usedSegments() {
  // one answer token has no earlier answer: no line for what cannot be
  const target = choice.target;
  return head.segments.filter((segment, i) => d3.range(head.layers).some((layer) => (numbers.attention(layer, target)?.[i] ?? 0) > 0));
}

function segmentSeries(valueAt) {
  return usedSegments().map((segment) => ({
    ...SERIES[segment], name: segment, label: SEGMENT_WORDS[segment],
    values: d3.range(head.layers).map((layer) => valueAt(layer)?.[head.segments.indexOf(segment)] ?? null),
  }));
}

function summarised(what, series, format) {
  const last = head.layers - 1;
  return `${what} by layer for ${targetName(choice.target)}. ${series.map(({ label, values }) => `${label}: ${format(values[0])} at layer 0, ${format(values[last])} at layer ${last}`).join("; ")}. The table below holds every value.`;
}

function showAttention() {
  const series = segmentSeries((layer) => numbers.attention(layer, choice.target));
  if (series.length === 0) return nothing("attention-chart", "No attention in any layer.");
  layerChart(find("attention-chart"), {
    series, format: percent, yLabel: "share of attention", domain: [0, 1], summary: summarised("Attention flow", series, percent),
  });
  return undefined;
}

function showSaliency() {
  if (!numbers.hasSaliency()) return undefined;
  const series = segmentSeries((layer) => numbers.saliency(layer, choice.target, choice.figure, choice.destination))
    .filter(({ name, values }) => !(name === "answer" && choice.destination === "user") && values.some((value) => value !== null));
  if (series.length === 0) return nothing("saliency-chart", "No saliency flow here.");
  const into = choice.destination === "answer" ? `into ${head.subject || "the answer"}` : "into the user text";
  layerChart(find("saliency-chart"), {
    series, format: figure, yLabel: `${choice.figure} of S ${into}`, summary: summarised(`Saliency flow ${into}`, series, figure),
  });
  return undefined;
}

function showConvergence() {
  const layered = head.signals.filter((signal) => !isSummed(signal));
  const charts = { entropy: ["entropy-chart", "normalised entropy", (value) => figure(value)], top10_mass: ["mass-chart", "share of the map", percent] };
  const tokens = head.counts[1];
  for (const [column, [id, yLabel, format]] of Object.entries(charts)) {
    const series = layered.map((signal, i) => ({
      ...SIGNAL_SERIES[i % SIGNAL_SERIES.length], ...ownColour(signal), name: signal, label: signalWords(signal).label,
      values: d3.range(head.layers).map((layer) => numbers.convergence(column, signal, layer, choice.target)),
    })).filter(({ values }) => values.some((value) => value !== null));
    if (series.length === 0) nothing(id, "No map to measure.");
    else {
      layerChart(find(id), { series, format, yLabel, domain: [0, 1], summary: summarised(yLabel, series, format),
        even: column === "top10_mass" ? Math.ceil(0.1 * tokens - 1e-9) / tokens : undefined });
    }
  }
  const sums = head.signals.filter(isSummed).map((signal) => {
    const [entropy, mass] = ["entropy", "top10_mass"].map((column) => numbers.convergence(column, signal, 0, choice.target));
    return entropy === null ? `${signalWords(signal).label}: no map` : `${signalWords(signal).label}, ${head.about[signal].whole ? "the whole model" : "summed over layers"}: entropy ${figure(entropy)}, top-10 % mass ${percent(mass)}`;
  });
  find("flow-convergence").textContent = sums.join(" · ");
}

function nothing(id, why) {
  find(id).replaceChildren(make("p", { className: "hint", textContent: why }));
}
