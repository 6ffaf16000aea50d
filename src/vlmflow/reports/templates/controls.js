// Everything the reader operates: signal, layer, answer token, colours, keys.

// A row of radio buttons bound to one choice.
function radios(place, name, options) {
  place.replaceChildren();
  for (const [value, text] of options) {
    const input = make("input", { type: "radio", name, value, checked: choice[name] === value });
    input.addEventListener("change", () => choose({ [name]: value }));
    place.append(make("label", { className: "choice" }, input, make("span", { textContent: text })));
  }
  // the form may restore or a key may change a choice: the buttons follow it
  follow([name], () => {
    for (const input of place.querySelectorAll("input")) input.checked = input.value === choice[name];
  });
}

function offerTokens() {
  const place = find("tokens");
  const gaps = head.tokens.some(startsWord); // else tokens carry no spaces: set each apart
  const button = (target, text, name, className) => {
    const element = make("button", {
      type: "button", role: "radio", className, textContent: text, dir: "auto", "aria-label": name,
      "aria-checked": "false", tabIndex: -1,
    });
    element.dataset.target = target;
    element.disabled = target >= head.charted;
    element.addEventListener("click", () => choose({ target }));
    return element;
  };
  const whole = head.subject ? "all of it" : "whole answer";
  place.append(button(0, whole, head.subject || whole, "token whole"));
  head.tokens.forEach((token, index) => {
    const apart = index > 0 && (!gaps || startsWord(token)) ? " apart" : "";
    const target = index + 1;
    const element = button(target, tokenText(token), `token ${target}: ${tokenText(token)}`, `token${apart}`);
    if (target >= head.charted) element.title = "The numbers of this token are not in this page.";
    place.append(element);
  });
  const mark = () => {
    for (const element of place.children) {
      const on = Number(element.dataset.target) === choice.target;
      element.setAttribute("aria-checked", String(on));
      element.tabIndex = on ? 0 : -1;
    }
    for (const says of document.querySelectorAll(".for-target")) says.textContent = `for ${targetName(choice.target)}`;
  };
  place.addEventListener("keydown", (event) => {
    const step = { ArrowLeft: -1, ArrowUp: -1, ArrowRight: 1, ArrowDown: 1 }[event.key];
    const goal = event.key === "Home" ? 0 : event.key === "End" ? head.charted - 1 : step && choice.target + step;
    if (goal === undefined) return;
    event.preventDefault();
    event.stopPropagation();
    stepToken(goal);
    place.children[choice.target].focus();
  });
  follow(["target"], mark);
  mark();
}

function stepToken(target) {
  choose({ target: Math.max(0, Math.min(head.charted - 1, target)) });
}

function stepLayer(layer) {
  if (isSummed(choice.signal)) {
    find("live").textContent = find("layer-note").textContent;
  } else {
    choose({ layer: Math.max(0, Math.min(head.layers - 1, layer)) });
  }
}

function offerLayer() {
  const slider = find("layer");
  slider.addEventListener("input", () => choose({ layer: Number(slider.value) }));
  const show = () => {
    const summed = isSummed(choice.signal);
    slider.disabled = summed;
    slider.value = choice.layer;
    const about = head.about[choice.signal];
    const span = summed ? about.summed.join("–") : "";
    find("layer-value").textContent = summed ? (about.whole ? "whole model" : `Σ ${span}`) : `${choice.layer} of 0–${head.layers - 1}`;
    find("layer-note").textContent = summed
      ? `This map (${signalWords(choice.signal).label}) is ${about.whole ? "one for the whole model" : `a sum over layers ${span}`}: choose another signal to go layer by layer.`
      : "Also with the keys ← and →, or by choosing a layer in a chart.";
  };
  follow(["layer", "signal"], show);
  show();
}

function offerColours() {
  radios(find("look"), "look", [["fill", "colours"], ["outline", "outline"]]);
  radios(find("reach"), "reach", [["layer", "scaled to this layer"], ["all", "scaled to all layers"]]);
  radios(find("steps"), "steps", [["linear", "linear"], ["root", "square root"]]);
  const slider = find("opacity");
  const show = () => {
    slider.value = Math.round(100 * choice.opacity);
    find("opacity-value").textContent = `${slider.value}\u00a0%`;
  };
  slider.addEventListener("input", () => choose({ opacity: Number(slider.value) / 100 }));
  follow(["opacity"], show);
  show();
  const fitting = () => {
    const outlined = choice.look === "outline";
    find("reach").hidden = outlined || isSummed(choice.signal);
    for (const id of ["steps", "legend", "opacity-part", "opacity-note"]) find(id).hidden = outlined;
    find("outline-note").hidden = !outlined;
  };
  follow(["signal", "look"], fitting);
  fitting();
}

// A picture that is seen in several grids: all of them together, or one kind alone.
function offerViews() {
  const kinds = severalKinds();
  find("views-part").hidden = kinds.length === 0;
  radios(find("views"), "view", [COMBINED, ...kinds].map((view) => [view, view]));
}

function offerSignals() {
  const signals = d3.sort(head.signals, (signal) => (isSummed(signal) ? 0 : 1));
  radios(find("signals"), "signal", signals.map((signal) => [signal, signalWords(signal).label]));
  const show = () => {
    const { summary, source } = signalWords(choice.signal);
    find("signal-definition").replaceChildren(asSentence(summary), " ", make("cite", { textContent: asSentence(source) }));
  };
  follow(["signal"], show);
  show();
}

// Arrow keys anywhere that has no use for them itself.
function listenToKeys() {
  document.addEventListener("keydown", (event) => {
    const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (!step || event.defaultPrevented || event.ctrlKey || event.altKey || event.metaKey) return;
    if (event.target.closest("input, select, textarea, canvas, .table-box, pre")) return;
    event.preventDefault();
    if (event.shiftKey) stepToken(choice.target + step);
    else stepLayer(choice.layer + step);
  }, { signal: closing.signal });
}
