// Whether the tested map ranks regions: its curves, and its difference beside random orders.

const TRUST_SERIES = [
  { key: "insertion", label: "insertion", colour: "var(--user)", dash: "", symbol: "circle" },
  { key: "deletion", label: "deletion", colour: "var(--image)", dash: "8 4", symbol: "square" },
];

const signed = (value) => `${value < 0 ? "−" : "+"}${Math.abs(value).toFixed(3)}`;

const isVideo = (tested) => Boolean(head.pictures[tested.image].frames);

function testedName(tested) {
  const { label, summed, whole } = head.about[tested.signal] ?? { label: tested.signal };
  const where = tested.layer !== null ? `, layer ${tested.layer}` : whole ? ", the whole model" : summed ? `, summed over layers ${summed.join("–")}` : "";
  const shown = isVideo(tested) ? ", the whole video" : head.pictures.length > 1 ? `, picture ${tested.image + 1}` : "";
  return `${label}${where}, for ${targetName(tested.target)}${shown}`;
}

function offerTrust() {
  if (find("trust") === null) return;
  const tests = head.trust;
  if (tests.length > 1) radios(find("trust-choice"), "tested", tests.map((tested, number) => [String(number), testedName(tested)]));
  find("trust-show").addEventListener("click", () => {
    const tested = tests[Number(choice.tested)];
    choose({ signal: tested.signal, target: tested.target, ...(tested.layer === null ? {} : { layer: tested.layer }) });
    find("explore").scrollIntoView();
  });
  follow(["tested"], showTrust);
  showTrust();
}

function showTrust() {
  const tested = head.trust[Number(choice.tested)];
  find("trust-says").textContent = tested.says;
  find("trust-name").textContent = testedName(tested);
  find("trust-show").hidden = !(tested.signal in head.about);
  find("trust-how").textContent = `The ${isVideo(tested) ? "video" : "picture"} appears, and vanishes, in ${tested.steps} steps of equal area, the map's strongest pixels first; ${{ black: "black", blur: "a blurred copy", mean: "its mean colour" }[tested.replacement] ?? tested.replacement} stands where it is not shown. The answer is fixed. ${2 * tested.steps * (1 + tested.random.length)} ${isVideo(tested) ? "videos" : "pictures"} were shown to the model for this.`;
  trustCurves(find("trust-chart"), tested);
  trustInterval(find("trust-interval"), tested);
}

function trustCurves(place, tested) {
  const width = Math.max(280, place.clientWidth);
  const height = width < 420 ? 256 : 296;
  const margin = { marginTop: 44, marginRight: 96, marginBottom: 38, marginLeft: 52 };
  const points = TRUST_SERIES.map(({ key }) => tested[key].map((value, step) => ({ share: step / tested.steps, value })));
  const summary = TRUST_SERIES.map(({ key, label }, i) => `${label}: from ${percent(tested[key][0])} to ${percent(tested[key].at(-1))}, area ${figure(tested.areas[i])}`).join("; ");
  const tip = (share) => [`${percent(share)} of the area`, ...TRUST_SERIES.map(({ key, label }) => `${label}  ${percent(tested[key][Math.round(share * tested.steps)])}`)].join("\n");
  const shares = points[0].map(({ share }) => share);
  const chart = drawn(Plot.plot({
    className: "chart", width, height, ...margin, ariaLabel: `Insertion and deletion. ${summary}.`,
    x: { domain: [0, 1], label: "share of the picture that has come, or gone", labelArrow: "none", labelAnchor: "right", labelOffset: 34, ticks: 5, tickFormat: percent },
    y: { domain: [0, 1], label: null, ticks: 5, tickFormat: percent },
    marks: [
      Plot.gridY({ ticks: 5, stroke: "var(--rule)", strokeOpacity: 1 }),
      Plot.ruleY([0], { stroke: "var(--quiet)" }),
      TRUST_SERIES.map(({ colour: stroke, dash }, i) => Plot.line(points[i], { x: "share", y: "value", stroke, strokeDasharray: dash || undefined, strokeWidth: 2.2 })),
      TRUST_SERIES.map(({ colour: fill, symbol }, i) => (tested.steps > 24 ? null : Plot.dot(points[i], { x: "share", y: "value", fill, symbol, r: 3.6, stroke: "var(--paper)", strokeWidth: 0.8 }))),
      Plot.ruleX(shares, Plot.pointerX({ x: (share) => share, stroke: "var(--quiet)", strokeOpacity: 0.7 })),
      Plot.tip(shares, Plot.pointerX({ x: (share) => share, y: () => 1, title: tip, anchor: "top", fill: "var(--paper)", stroke: "var(--rule)", fontSize: 12, lineHeight: 1.4 })),
    ],
  }));
  const svg = d3.select(chart);
  svg.append("text").attr("class", "unit").attr("x", 0).attr("y", 12).attr("text-anchor", "start").text("mean probability of the answer's tokens");
  const y = chart.scale("y");
  const ends = TRUST_SERIES.map(({ key }) => y.apply(tested[key].at(-1)));
  const heights = apart(ends, 16, margin.marginTop + 4, height - margin.marginBottom - 4);
  const labels = svg.append("g").attr("class", "direct");
  TRUST_SERIES.forEach(({ label }, i) => labels.append("text").attr("x", width - margin.marginRight + 10).attr("y", heights[i]).attr("dy", "0.34em").attr("text-anchor", "start").text(label));
  place.replaceChildren(chart);
}

// On one line: what 95 % of random orders give, the drawn ones, and the map.
function trustInterval(place, tested) {
  const width = Math.max(280, place.clientWidth);
  const most = 1.12 * Math.max(tested.limit, Math.abs(tested.difference), ...tested.random.map(Math.abs), 0.01);
  const chart = drawn(Plot.plot({
    className: "chart", width, height: 150, marginTop: 56, marginBottom: 40, marginLeft: 16, marginRight: 16,
    ariaLabel: `Insertion minus deletion: ${signed(tested.difference)}; 95 % of random orders lie within ${tested.limit.toFixed(3)} of 0.`,
    x: { domain: [-most, most], label: "insertion minus deletion", labelArrow: "none", labelAnchor: "right", labelOffset: 36, ticks: 5 },
    y: { domain: [0, 1], axis: null },
    marks: [
      Plot.rect([0], { x1: -tested.limit, x2: tested.limit, y1: 0.08, y2: 0.92, fill: "var(--quiet)", fillOpacity: 0.22, rx: 4 }),
      Plot.ruleX([0], { stroke: "var(--quiet)" }),
      Plot.link(tested.random, { x1: (value) => value, x2: (value) => value, y1: 0.25, y2: 0.75, stroke: "var(--quiet)", strokeWidth: 1.6 }),
      Plot.ruleX([tested.difference], { stroke: "var(--ink)", strokeWidth: 2 }),
      Plot.dot([tested.difference], { x: (value) => value, y: () => 0.5, r: 7, fill: "var(--accent)", stroke: "var(--paper)", strokeWidth: 1.5 }),
    ],
  }));
  const x = chart.scale("x");
  const svg = d3.select(chart);
  const end = tested.difference > 0.5 * most ? "end" : tested.difference < -0.5 * most ? "start" : "middle";
  svg.append("text").attr("class", "map-value").attr("x", x.apply(tested.difference)).attr("y", 46).attr("text-anchor", end).text(`this map ${signed(tested.difference)}`);
  svg.append("text").attr("class", "unit").attr("x", x.apply(0)).attr("y", 18).attr("text-anchor", "middle").text(`95 % of random orders: within ${tested.limit.toFixed(3)} of 0`);
  place.replaceChildren(chart);
}
