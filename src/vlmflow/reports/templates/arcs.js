// The prompt on a line, and arcs from its segments into the answer, as wide as what flows.

const WIDEST = 30;

function arcValues(layer) {
  return choice.arcs === "attention"
    ? numbers.attention(layer, choice.target)
    : numbers.saliency(layer, choice.target, "sum", "answer");
}

function showArcs() {
  const both = [choice.shallow, choice.deep].map(arcValues);
  // attention shares have a scale of their own; saliency is measured against the larger of the two
  const top = choice.arcs === "attention" ? 1 : d3.max(both, (values) => (values === null ? 0 : d3.max(values))) || 1;
  const format = choice.arcs === "attention" ? percent : figure;
  // both layers show the same segments, so that they compare at a glance
  const segments = head.segments.filter((segment, i) => segment !== "answer" || both.some((values) => values?.[i] > 0));
  drawArcs("shallow-arcs", choice.shallow, both[0], segments, top, format);
  drawArcs("deep-arcs", choice.deep, both[1], segments, top, format);
  find("arcs-scale").textContent = choice.arcs === "attention"
    ? "Full width would be 100 % of the attention. Numbers under a segment: its share, and the number of tokens that share it."
    : `Full width is ${figure(top)}, the largest of the two layers. Numbers under a segment: the sum of its saliency flow into ${head.subject || "the answer"}, and how many tokens send it.`;
}

function drawArcs(id, layer, values, segments, top, format) {
  if (values === null) return nothing(id, `No attention here: layer ${layer} has none.`);
  const place = find(id);
  const width = Math.max(280, place.clientWidth);
  const [line, height, gap] = [168, 246, 6];
  const boxWidth = (width - gap * segments.length) / (segments.length + 1);
  const middle = (slot) => slot * (boxWidth + gap) + boxWidth / 2;
  const answer = segments.length;
  const ranked = segments.map((segment, slot) => ({ segment, slot, value: values[head.segments.indexOf(segment)] }));
  const summary = `Layer ${layer}, ${choice.arcs} flow into ${targetName(choice.target)}: ${ranked.map(({ segment, value }) => `${SEGMENT_WORDS[segment]} ${format(value)}`).join(", ")}.`;
  const svg = d3.create("svg").attr("class", "chart arcs").attr("viewBox", `0 0 ${width} ${height}`).attr("width", width).attr("height", height)
    .attr("role", "img").attr("aria-label", summary);

  for (const { segment, slot, value } of ranked) {
    const from = middle(slot);
    // arcs land side by side on the answer, the farthest outside
    const to = middle(answer) + (slot - (segments.length - 1) / 2) * -boxWidth / (2 * segments.length);
    const stroke = WIDEST * (value / top);
    const rise = Math.max(24, (line - 20) * (to - from) / (middle(answer) - middle(0)));
    const path = `M${from},${line} C${from},${line - 1.28 * rise} ${to},${line - 1.28 * rise} ${to},${line}`;
    svg.append("path").attr("d", path).attr("fill", "none").attr("stroke", SERIES[segment].colour)
      .attr("stroke-width", Math.max(0.75, stroke)).attr("stroke-dasharray", stroke < 0.75 ? "2 4" : null)
      .attr("stroke-opacity", segment === "image" ? 0.95 : 0.7).append("title").text(`${SEGMENT_WORDS[segment]}: ${format(value)}`);
  }
  const block = (slot, className, name, lines) => {
    const group = svg.append("g").attr("transform", `translate(${slot * (boxWidth + gap)},${line})`).attr("class", className);
    group.append("rect").attr("width", boxWidth).attr("height", 26).attr("rx", 3);
    group.append("text").attr("class", "name").attr("x", boxWidth / 2).attr("y", 17).text(name);
    lines.forEach(([className2, text], i) => group.append("text").attr("class", className2).attr("x", boxWidth / 2).attr("y", 46 + 18 * i).text(text));
  };
  for (const { segment, slot, value } of ranked) {
    const count = head.counts[head.segments.indexOf(segment)];
    const tokens = segment === "answer" ? (choice.target > 0 ? choice.target - 1 : "") : count;
    block(slot, `block ${segment}`, boxWidth < 84 ? { answer: "earlier" }[segment] ?? segment : SEGMENT_WORDS[segment],
      [["value", format(value)], ["count", tokens === "" ? "" : `${tokens} token${tokens === 1 ? "" : "s"}`]]);
  }
  block(answer, "block goal", head.subject ? "words" : "answer", [["count", choice.target === 0 ? "whole" : `token ${choice.target}`]]);
  place.replaceChildren(svg.node());
  return undefined;
}

function offerArcs() {
  if (numbers.hasSaliency()) radios(find("arcs-measure"), "arcs", [["attention", "attention flow"], ["saliency", "saliency flow, sum"]]);
  for (const name of ["shallow", "deep"]) {
    const select = find(name);
    for (let layer = 0; layer < head.layers; layer++) select.append(make("option", { value: String(layer), textContent: String(layer) }));
    select.value = String(choice[name]);
    select.addEventListener("change", () => choose({ [name]: Number(select.value) }));
  }
}
