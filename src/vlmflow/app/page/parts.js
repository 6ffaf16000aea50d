// What the parts of the app's page share: the open answer, requests, and the words for numbers.

const open = {
  answer: null, // the name of the answer that is shown
  report: null, // what mountReport() returned for it
  summary: null, // what is known of it beside the report
  about: null, // the model, and what can be chosen for it
};

// Ask the server; what it refuses is thrown, in its words.
async function request(path, options = {}) {
  let response;
  try {
    response = await fetch(path, options);
  } catch {
    throw new Error("The app does not answer. Is it still running?");
  }
  if (response.ok) return response;
  let why = `The app refused this (${response.status}).`;
  try {
    why = sentence((await response.json()).error ?? why);
  } catch {
    // an answer that is not ours has nothing to add
  }
  throw new Error(why);
}

async function send(path, body) {
  const response = await request(path, { method: "POST", headers: { "content-type": "application/json" }, body: JSON.stringify(body) });
  return response.json();
}

const sentence = (text) => `${text.charAt(0).toUpperCase()}${text.slice(1)}${/[.!?]$/.test(text) ? "" : "."}`;
const share = (value) => `${(100 * value).toFixed(value < 0.0995 ? 1 : 0)}\u00a0%`;
const seconds = (value) => (value === null ? "–" : value < 1 ? `${(1000 * value).toFixed(value < 0.01 ? 2 : 1)} ms` : `${value.toFixed(2)} s`);
const mebibytes = (value) => `${(value / 2 ** 20).toFixed(2)} MiB`;
const lasting = (ratio) => (ratio === null ? "" : ratio > 1 ? `${ratio.toFixed(2)} × as slow` : `${(1 / ratio).toFixed(2)} × as fast`);
