// The numbers of the charts, to read, sort, copy and take away.

const sorting = { column: 0, down: false };

function tableColumns() {
  const shares = head.segments.map((segment) => ({ group: "attention flow", name: SEGMENT_WORDS[segment], key: `attention_${segment}`, format: percent }));
  const flows = !numbers.hasSaliency() ? [] : head.segments.map((segment) => ({ group: `saliency flow into ${head.subject && choice.destination === "answer" ? "the words" : choice.destination}, ${choice.figure}`, name: SEGMENT_WORDS[segment], key: `saliency_${choice.figure}_${segment}_to_${choice.destination}`, format: figure }));
  const signal = head.signals.find((name) => name === choice.signal && !isSummed(name)) ?? head.signals.find((name) => !isSummed(name));
  const shape = signal === undefined ? [] : [
    { group: signalWords(signal).label, name: "entropy", key: `${signal}_entropy`, format: figure },
    { group: signalWords(signal).label, name: "top-10 %", key: `${signal}_top10_mass`, format: percent },
    { group: signalWords(signal).label, name: "map", key: `${signal}_flag`, format: (text) => text || "ok" },
  ];
  return { signal, columns: [{ group: "", name: "layer", key: "layer", format: String }, ...shares, ...flows, ...shape] };
}

function tableRow(layer, target, signal) {
  const share = numbers.attention(layer, target) ?? head.segments.map(() => null);
  const flow = !numbers.hasSaliency() ? [] : numbers.saliency(layer, target, choice.figure, choice.destination) ?? head.segments.map(() => null);
  const shape = signal === undefined ? [] : [
    numbers.convergence("entropy", signal, layer, target), numbers.convergence("top10_mass", signal, layer, target),
    FLAG_WORDS[numbers.flag(signal, layer, target)],
  ];
  return [layer, ...share, ...flow, ...shape];
}

function showTable() {
  const { signal, columns } = tableColumns();
  const rows = d3.range(head.layers).map((layer) => tableRow(layer, choice.target, signal));
  if (sorting.column >= columns.length) sorting.column = 0;
  const order = sorting.down ? d3.descending : d3.ascending;
  rows.sort((a, b) => order(a[sorting.column], b[sorting.column]) || a[0] - b[0]);
  const groups = d3.groups(columns, ({ group }) => group).map(([group, members]) => make("th", { scope: "colgroup", colSpan: members.length, textContent: group }));
  const heads = columns.map(({ name }, column) => {
    const here = sorting.column === column;
    const button = make("button", { type: "button", textContent: name });
    button.addEventListener("click", () => {
      sorting.down = here ? !sorting.down : column !== 0;
      sorting.column = column;
      showTable();
      find("numbers").querySelectorAll("thead button")[column].focus();
    });
    return make("th", { scope: "col", "aria-sort": here ? (sorting.down ? "descending" : "ascending") : "none" }, button);
  });
  const body = rows.map((values) => {
    const line = make("tr", {}, ...values.map((value, column) => (column === 0
      ? make("th", { scope: "row", textContent: String(value) })
      : make("td", { textContent: columns[column].format(value) }))));
    line.dataset.layer = values[0];
    return line;
  });
  find("numbers").replaceChildren(
    make("caption", { className: "unseen", textContent: `Numbers by layer for ${targetName(choice.target)}` }),
    make("thead", {}, make("tr", {}, ...groups), make("tr", {}, ...heads)), make("tbody", {}, ...body));
  markRow();
}

function markRow() {
  for (const line of find("numbers").querySelectorAll("tbody tr")) {
    line.classList.toggle("current", Number(line.dataset.layer) === choice.layer && !isSummed(choice.signal));
  }
}

// A spreadsheet would run a text that starts like a formula.
const guarded = (text) => (/^[=+\-@\t\r]/.test(text) ? `'${text}` : text);
const cell = (value) => (typeof value === "number" ? String(Number(value.toPrecision(6))) : guarded(value ?? ""));
const quoted = (text) => (/[",\n\r]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text);

function tableText(targets, separator) {
  const { signal, columns } = tableColumns();
  const lines = [["target", "token", ...columns.map(({ key }) => key)]];
  for (const target of targets) {
    for (let layer = 0; layer < head.layers; layer++) {
      lines.push([String(target), guarded(head.targets[target]), ...tableRow(layer, target, signal).map(cell)]);
    }
  }
  const write = separator === "\t" ? (text) => text.replace(/[\t\n\r]/g, " ") : quoted;
  return lines.map((line) => line.map(write).join(separator)).join("\n") + "\n";
}

function download(text, name) {
  const address = URL.createObjectURL(new Blob([text], { type: "text/csv" }));
  const link = make("a", { href: address, download: name });
  document.body.append(link);
  link.click();
  link.remove();
  setTimeout(() => URL.revokeObjectURL(address), 1000);
}

async function copyTable() {
  const text = tableText([choice.target], "\t");
  try {
    await navigator.clipboard.writeText(text);
    find("table-done").textContent = "Copied.";
  } catch {
    find("table-done").textContent = "This browser does not let a page copy; download the CSV instead.";
  }
}

function offerTable() {
  find("copy").addEventListener("click", copyTable);
  find("download").addEventListener("click", () => download(tableText([choice.target], ","), `information-flow-target-${choice.target}.csv`));
  find("download-all").addEventListener("click", () => download(tableText(d3.range(head.charted), ","), "information-flow.csv"));
}
