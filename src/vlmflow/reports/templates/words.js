// Every word of the page that depends on what was measured: one place, one vocabulary.

const PAPER = "From Redundancy to Relevance (NAACL 2025)";
const ANCHORS = "Label Words are Anchors (EMNLP 2023)";

const SIGNALS = {
  flow: {
    label: "flow map",
    says: "What each image token sends on: saliency summed over layers and over all text positions.",
    source: `vlmflow's sum over layers of the saliency of ${ANCHORS}.`,
  },
  attention: {
    label: "attention",
    says: "Attention, averaged over heads, from the position that predicts the answer token to each image token.",
    source: `${PAPER}, eq. 6–9.`,
  },
  saliency: {
    label: "saliency",
    says: "|Σ over heads of A ⊙ ∂target/∂A|, received by each image token from all text positions.",
    source: `${ANCHORS}.`,
  },
  llava_cam: {
    label: "LLaVA-CAM",
    says: "Grad-CAM on a decoder layer at the image positions: channels weighted by their gradient, positive part.",
    source: `${PAPER}, eq. 1–3.`,
  },
  llava_cam_smooth: {
    label: "LLaVA-CAM, smoothed",
    says: "LLaVA-CAM averaged over noisy copies of the picture.",
    source: `${PAPER}, eq. 1–5.`,
  },
  llava_cam_code: {
    label: "LLaVA-CAM, paper's code",
    says: "The variant in the paper's code: gradients cut at zero, values below half of the largest dropped.",
    source: `Code of ${PAPER}.`,
  },
};

const signalWords = (signal) => SIGNALS[signal] ?? { label: signal, says: "", source: "" };

const FLAG_WORDS = ["", "undefined", "empty", "no attention here"];

function flagReason(flag, signal, layer) {
  if (flag === 1 && signal.startsWith("llava_cam")) {
    return `Undefined: at layer ${layer} the image positions no longer reach the answer through this hook, so their gradient is exactly 0.`;
  }
  return {
    1: "Undefined: this signal does not exist here.",
    2: "Empty: no image token has a positive value here.",
    3: `No attention here: layer ${layer} has none, so there is nothing to read.`,
  }[flag];
}

const SEGMENT_WORDS = { system: "system", image: "image", user: "user", answer: "earlier answer" };

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
  if (target === 0) return "the whole answer";
  const text = tokenText(head.targets[target]);
  return `answer token ${target}, “${text.length > 48 ? `${text.slice(0, 48)}…` : text}”`;
}
