// Whether the answer depends on what the map shown points at, tested on demand.

function offerTesting() {
  find("test-go").addEventListener("click", async () => {
    const { signal, layer, target } = open.report.choice;
    const ended = await work(`/answers/${open.answer}/trust`, { signal, layer, target }, "test-work");
    if (!ended?.done) return;
    await refresh("test-go");
    // the newest test is the last one
    const { choose, head } = open.report;
    choose({ tested: String(head.trust.length - 1) });
  });
}

function showTested() {
  const { choice, head } = open.report;
  const about = head.about[choice.signal];
  const where = (about?.summed ?? null) !== null ? "" : `, layer ${choice.layer}`;
  find("testing-map").textContent = about === undefined ? "" : `${about.label}${where}, ${head.targets[choice.target]}`;
}
