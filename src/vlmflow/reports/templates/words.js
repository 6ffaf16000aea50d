// Every word of the page that depends on what was measured: one place, one vocabulary.

const signalWords = (signal) => head.about[signal] ?? { label: signal, summary: "", source: "" };

// The colour that a signal brings along, where it does.
const ownColour = (signal) => (head.about[signal]?.colour ? { colour: head.about[signal].colour } : {});

// A line as a sentence: with a capital and a full stop.
function asSentence(line) {
  return line === "" ? "" : `${line[0].toUpperCase()}${line.slice(1)}${/[.!?]$/.test(line) ? "" : "."}`;
}

const tokenWords = () => (head.subject ? "token" : "answer token");

const FLAG_WORDS = ["", "undefined", "empty", "no attention here"];

function flagReason(flag, layer) {
  return {
    1: `Undefined: at layer ${layer} the image positions no longer reach ${head.subject || "the answer"} through this hook, so their gradient is exactly 0.`,
    2: "Empty: no image token has a positive value here.",
    3: `No attention here: layer ${layer} has none, so there is nothing to read.`,
  }[flag];
}

const SEGMENT_WORDS = {
  system: "system", image: "image", user: "user",
  get answer() { return head.subject ? "earlier words" : "earlier answer"; },
};

// Figures in three significant digits, magnitudes kept.
function figure(value) {
  if (value === null || value === undefined || Number.isNaN(value)) return "–";
  if (value === 0) return "0";
  const size = Math.abs(value);
  if (size >= 0.001 && size < 10000) return String(Number(value.toPrecision(3)));
  return value.toExponential(2).replace("e+", "e");
}

function percent(share) {
  if (share === null) return "–";
  const value = 100 * share;
  if (value === 0) return "0\u00a0%";
  if (value < 0.05) return "<\u00a00.1\u00a0%";
  return value < 9.95 ? `${value.toFixed(1)}\u00a0%` : `${value.toFixed(0)}\u00a0%`;
}

// A token as it reads on its own: its leading space is the gap before it, a line break has a sign.
function tokenText(token) {
  const text = token.replace(/^[ ▁Ġ]+/, "").replaceAll("\n", "⏎").replaceAll("\t", "⇥");
  return text === "" ? "␣" : text;
}

// Which of several maps of a picture is shown; nothing where there is one.
function viewWords() {
  const kinds = severalKinds();
  if (kinds.length === 0) return "";
  return choice.view === COMBINED ? ` · ${kinds.join(" and ")} combined, mean by area` : ` · ${choice.view} alone`;
}

const startsWord = (token) => /^[ ▁Ġ]/.test(token);

function targetName(target) {
  if (target === 0) return head.subject || "the whole answer";
  const text = tokenText(head.targets[target]);
  return `${head.subject ? "" : "answer "}token ${target}, “${text.length > 48 ? `${text.slice(0, 48)}…` : text}”`;
}
