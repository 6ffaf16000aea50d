// What the charts share: series that differ in dash, marker and label as well as in colour.

const SERIES = {
  system: { colour: "var(--system)", dash: "1 4", symbol: "triangle" },
  image: { colour: "var(--image)", dash: "", symbol: "circle" },
  user: { colour: "var(--user)", dash: "8 4", symbol: "square" },
  answer: { colour: "var(--answer)", dash: "9 4 2 4", symbol: "diamond" },
};
const SIGNAL_SERIES = [
  { colour: "var(--image)", dash: "", symbol: "circle" },
  { colour: "var(--user)", dash: "8 4", symbol: "square" },
  { colour: "var(--system)", dash: "1 4", symbol: "triangle" },
  { colour: "var(--answer)", dash: "9 4 2 4", symbol: "diamond" },
  { colour: "var(--ink)", dash: "3 3", symbol: "star" },
];

// Plot writes a style element of its own, which the page's content policy refuses: page.css has it.
function drawn(chart) {
  for (const style of chart.querySelectorAll("style")) style.remove();
  return chart;
}

// Heights for direct labels: in order of their values, at least `gap` apart, inside the chart.
function apart(heights, gap, low, high) {
  const order = d3.range(heights.length).sort((a, b) => heights[a] - heights[b]);
  const placed = [...heights];
  let last = low - gap;
  for (const i of order) last = placed[i] = Math.max(placed[i], last + gap);
  let next = high + gap;
  for (const i of order.reverse()) next = placed[i] = Math.min(placed[i], next - gap);
  return placed;
}

// Lines over layers. series: [{ name, label, colour, dash, symbol, values: [number | null] }]
// always: the layer is marked and chosen even where the map is a sum over layers.
function layerChart(place, { series, format, yLabel, domain, summary, even, always = false }) {
  const width = Math.max(280, place.clientWidth);
  const height = width < 420 ? 256 : 296;
  const labelWidth = 30 + 7.8 * d3.max(series, ({ label }) => label.length);
  const margin = { marginTop: 44, marginRight: Math.min(labelWidth, 0.4 * width), marginBottom: 38, marginLeft: 52 };
  const top = d3.max(series, ({ values }) => d3.max(values)) || 1;
  const [low, high] = domain ?? [0, 1.04 * top];
  const layers = d3.range(head.layers);
  const span = head.layers > 1 ? [0, head.layers - 1] : [-0.5, 0.5];
  const points = series.map(({ values }) => layers.map((layer) => ({ layer, value: values[layer] })));
  const every = Math.ceil(head.layers / 14);
  const y = (value) => height - margin.marginBottom - ((value - low) / (high - low)) * (height - margin.marginTop - margin.marginBottom);
  const ends = series.map(({ values }) => values.findLast((value) => value !== null) ?? low);
  const heights = apart(ends.map(y), 16, margin.marginTop + 4, height - margin.marginBottom - 4);
  const tip = (layer) => [`layer ${layer}`, ...series.map(({ label, values }) => `${label}  ${format(values[layer])}`)].join("\n");

  const chart = drawn(Plot.plot({
    className: "chart", width, height, ...margin,
    ariaLabel: summary,
    x: { domain: span, label: "decoder layer", labelArrow: "none", labelAnchor: "right", labelOffset: 34,
      ticks: d3.ticks(...span, Math.min(head.layers, width / 60)).filter(Number.isInteger), tickFormat: "d" },
    y: { domain: [low, high], label: null, ticks: 5, tickFormat: format },
    marks: [
      Plot.gridY({ ticks: 5, stroke: "var(--rule)", strokeOpacity: 1 }),
      Plot.ruleY([low], { stroke: "var(--quiet)" }),
      even === undefined ? null : Plot.ruleY([even], { stroke: "var(--quiet)", strokeDasharray: "1 4" }),
      series.map(({ colour: stroke, dash }, i) => Plot.line(points[i], { x: "layer", y: "value", stroke, strokeDasharray: dash || undefined, strokeWidth: 2.2 })),
      series.map(({ colour: fill, symbol }, i) => Plot.dot(points[i].filter(({ layer, value }) => value !== null && layer % every === 0),
        { x: "layer", y: "value", fill, symbol, r: 3.6, stroke: "var(--paper)", strokeWidth: 0.8 })),
      Plot.ruleX(layers, Plot.pointerX({ x: (layer) => layer, stroke: "var(--quiet)", strokeOpacity: 0.7 })),
      Plot.tip(layers, Plot.pointerX({ x: (layer) => layer, y: () => high, title: tip, anchor: "top", fill: "var(--paper)", stroke: "var(--rule)", fontSize: 12, lineHeight: 1.4 })),
    ],
  }));
  const svg = d3.select(chart);
  svg.append("text").attr("class", "unit").attr("x", 0).attr("y", 12).attr("text-anchor", "start").text(yLabel);
  const edge = width - margin.marginRight;
  const labels = svg.append("g").attr("class", "direct");
  // labels may have to stand apart: a line leads from where each curve ends to its name
  series.forEach(({ label, colour: stroke, values }, i) => {
    const last = chart.scale("x").apply(Math.max(0, values.findLastIndex((value) => value !== null)));
    labels.append("path").attr("class", "leader").attr("d", `M${last + 3},${y(ends[i])}L${edge + 15},${heights[i]}h4`).attr("stroke", stroke);
    labels.append("text").attr("x", edge + 22).attr("y", heights[i]).attr("dy", "0.34em").attr("text-anchor", "start").text(label);
  });
  const x = chart.scale("x");
  const current = svg.insert("g", "g").attr("class", "current-layer");
  current.append("line").attr("y1", margin.marginTop - 6).attr("y2", height - margin.marginBottom);
  current.append("text").attr("y", margin.marginTop - 12).attr("text-anchor", "middle");
  chart.markLayer = () => {
    const hide = !always && isSummed(choice.signal);
    current.attr("display", hide ? "none" : null).attr("transform", `translate(${x.apply(choice.layer)},0)`);
    current.select("text").text(`layer ${choice.layer}`);
  };
  chart.markLayer();
  chart.addEventListener("click", () => {
    if (chart.value === null || chart.value === undefined) return;
    if (always) choose({ layer: chart.value });
    else stepLayer(chart.value);
  });
  place.replaceChildren(chart);
}

function markLayerInCharts() {
  for (const chart of document.querySelectorAll(".chart-box > svg")) chart.markLayer?.();
}
