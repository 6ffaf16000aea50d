// The address of what is shown: it opens the same answer, map, layer and word again.

const LINKED = ["signal", "layer", "target", "word"];

function writeAddress() {
  const { choice } = open.report;
  const chosenNow = new URLSearchParams(LINKED.map((name) => [name, String(choice[name])]));
  history.replaceState(history.state, "", `/answers/${open.answer}#${chosenNow}`);
}

// What an address asks for, as far as this result has it.
function readAddress({ head }, text) {
  const given = new URLSearchParams(text.replace(/^#/, ""));
  const limits = { layer: head.layers, target: head.charted, word: head.words?.items.length ?? 0 };
  const wanted = {};
  if (head.signals.includes(given.get("signal"))) wanted.signal = given.get("signal");
  for (const [name, end] of Object.entries(limits)) {
    const value = given.get(name);
    if (/^\d{1,6}$/.test(value ?? "") && Number(value) < end) wanted[name] = Number(value);
  }
  return wanted;
}

function offerLink() {
  find("take-link").addEventListener("click", async () => {
    writeAddress();
    try {
      await navigator.clipboard.writeText(location.href);
      find("take-note").textContent = "Copied. It works while the app runs, for four hours after its last use.";
    } catch {
      find("take-note").textContent = "This browser does not let a page copy; the address bar has the link.";
    }
  });
}
