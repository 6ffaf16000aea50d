// The same question with image tokens removed, beside the untouched model.

const how = () => document.querySelector("input[name=how]:checked").value;

function offerRemoving() {
  const { layers, ranking, rankings, presets } = open.about.offers;
  const slider = find("remove-layer");
  Object.assign(slider, { max: layers - 1, value: Math.floor(layers / 2) });
  const showLayer = () => { find("remove-layer-value").textContent = `${slider.value} of 0–${layers - 1}`; };
  slider.addEventListener("input", showLayer);
  showLayer();
  offerNames("remove-ranking", "remove-ranking-says", rankings, ranking);
  offerNames("remove-preset", "remove-preset-says", presets, presets[0].name);
  for (const input of document.querySelectorAll("input[name=how]")) {
    input.addEventListener("change", () => {
      for (const part of document.querySelectorAll(".how")) part.hidden = part.dataset.how !== how();
    });
  }
  const unit = find("remove-unit");
  unit.addEventListener("change", () => { find("remove-keep").max = unit.value === "share" ? 100 : 1000000; });
  const file = find("remove-policy");
  file.addEventListener("change", () => { if (file.files.length > 0) find("remove-policy-says").textContent = file.files[0].name; });
  find("remove").addEventListener("submit", async (event) => {
    event.preventDefault();
    let wanted;
    try {
      wanted = await wantedRemoval();
    } catch (error) {
      return complain("remove-work", error.message);
    }
    const ended = await work(`/answers/${open.answer}/truncated`, wanted, "remove-work");
    if (!ended?.done) return undefined;
    await refresh("remove-go");
    // the first layer that lacks something, if any does
    const { counts } = open.report.head.truncated;
    const layer = counts.findIndex((count) => count < open.summary.truncated.truncated.image_tokens);
    if (layer >= 0) open.report.choose({ layer });
    return undefined;
  });
}

function offerNames(id, says, entries, first) {
  const select = find(id);
  select.replaceChildren(...entries.map(({ name }) => make("option", { value: name, textContent: name, selected: name === first })));
  const show = () => { find(says).textContent = entries.find(({ name }) => name === select.value)?.says ?? ""; };
  select.addEventListener("change", show);
  show();
}

async function wantedRemoval() {
  if (how() === "preset") return { how: "preset", name: find("remove-preset").value };
  if (how() === "policy") {
    const [file] = find("remove-policy").files;
    if (file === undefined) throw new Error("Choose the file of a policy first.");
    if (file.size > 2 ** 20) throw new Error(`“${file.name}” is larger than a policy can be.`);
    return { how: "policy", name: file.name, text: await file.text() };
  }
  const kept = find("remove-keep").valueAsNumber;
  if (!(kept >= 0)) throw new Error("Say how many image tokens are kept, from 0 on.");
  const amount = find("remove-unit").value === "share" ? { share: kept / 100 } : { count: kept };
  return { how: "settings", layer: Number(find("remove-layer").value), ...amount, rank_by: find("remove-ranking").value };
}

function showRemoved() {
  const facts = open.summary.truncated;
  find("removed").hidden = facts === null;
  if (facts === null) return;
  const { truncated, untouched, ratios, same_answer: same } = facts;
  find("removed-verdict").textContent = `${facts.name}: ${same ? "the same answer" : `another answer, “${truncated.answer}”`}.${exited(truncated, facts.layers)}`;
  const flops = truncated.flops;
  const rows = [
    ["Answer", untouched.answer, truncated.answer, same ? "the same" : "another"],
    ["Prefill", seconds(untouched.prefill), seconds(truncated.prefill), lasting(ratios.prefill)],
    ["Each further token", seconds(untouched.per_token), seconds(truncated.per_token), lasting(ratios.per_token)],
    ["End to end", seconds(untouched.end_to_end), seconds(truncated.end_to_end), lasting(ratios.end_to_end)],
    ["Keys and values", mebibytes(untouched.cache_bytes), mebibytes(truncated.cache_bytes), ratios.cache_bytes === null ? "" : share(ratios.cache_bytes)],
    ["FLOPs of the prefill, measured", "", `${(flops.measured / 1e9).toPrecision(3)} G`, share(flops.measured_share)],
    ["of the decoder, by FastV's formula", "", "", share(flops.formula_share)],
  ];
  const cell = (text, className = "") => make("td", { textContent: text, className, dir: "auto" });
  find("removed-table").replaceChildren(
    make("thead", {}, make("tr", {}, ...["", "untouched", "truncated", "compared"].map((text) => make("th", { scope: "col", textContent: text })))),
    make("tbody", {}, ...rows.map(([name, ...texts]) => make("tr", {}, make("th", { scope: "row", textContent: name }), ...texts.map((text) => cell(text, name === "Answer" ? "words" : ""))))));
  const series = [
    { name: "untouched", label: "untouched", colour: "var(--user)", dash: "8 4", symbol: "square", values: untouched.cached_tokens },
    { name: "truncated", label: "truncated", colour: "var(--image)", dash: "", symbol: "circle", values: truncated.cached_tokens },
  ];
  open.report.layRemoved(find("removed-pictures"));
  open.report.layerChart(find("removed-chart"), {
    series, format: (value) => String(Math.round(value)), yLabel: "tokens", always: true,
    summary: `Prompt tokens by layer. Untouched: ${untouched.cached_tokens.join(", ")}. Truncated: ${truncated.cached_tokens.join(", ")}.`,
  });
}

function exited(truncated, layers) {
  if (truncated.policy === undefined) return "";
  return truncated.exit_layer < layers ? ` It let the image tokens go at layer ${truncated.exit_layer}.` : " It kept all image tokens.";
}
