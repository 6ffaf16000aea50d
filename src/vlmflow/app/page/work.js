// Work on the model: started, watched, and stopped from the part of the page that asked for it.

let running = null; // the id of the job that this page waits for

function setBusy(job) {
  running = job;
  // not disabled, which would take the focus away from who works with a keyboard
  for (const button of document.querySelectorAll(".go")) button.setAttribute("aria-disabled", String(job !== null));
}

function complain(place, message) {
  find(place).replaceChildren(make("p", { className: "notice", role: "alert", textContent: message }));
}

// Start work and show how far it is in `place`; true once it is done, false if it was stopped or failed.
async function work(path, body, place, onShown = () => {}) {
  if (running !== null) return null;
  const box = find(place);
  const doing = make("span", { className: "doing", role: "status", textContent: "Starting" });
  const bar = make("progress", { "aria-label": "Progress" });
  const stop = make("button", { type: "button", className: "plain", textContent: "Stop" });
  box.replaceChildren(bar, doing, stop);
  setBusy("asking");
  try {
    const { answer, job } = await send(path, body);
    setBusy(job);
    stop.addEventListener("click", () => {
      stop.disabled = true;
      doing.textContent = "Stopping";
      request(`/jobs/${job}/cancel`, { method: "POST" }).catch((error) => complain(place, error.message));
    });
    const last = await watch(job, (shown) => {
      if (!stop.disabled) doing.textContent = shown.says;
      if (shown.total > 0) Object.assign(bar, { max: shown.total, value: shown.done });
      else bar.removeAttribute("value");
      onShown(shown);
    });
    if (last.status === "failed") complain(place, sentence(last.says));
    else if (last.status === "cancelled") box.replaceChildren(make("span", { className: "doing", role: "status", textContent: "Stopped." }));
    else box.replaceChildren();
    return { done: last.status === "done", answer };
  } catch (error) {
    complain(place, error.message);
    return { done: false, answer: null };
  } finally {
    setBusy(null);
  }
}

function watch(job, onShown) {
  return new Promise((resolve, reject) => {
    const events = new EventSource(`/jobs/${job}`);
    let failures = 0;
    events.onmessage = ({ data }) => {
      failures = 0;
      const shown = JSON.parse(data);
      onShown(shown);
      if (["done", "failed", "cancelled"].includes(shown.status)) {
        events.close();
        resolve(shown);
      }
    };
    events.onerror = () => {
      failures++;
      // the browser connects again by itself, unless it was turned away
      if (events.readyState !== EventSource.CLOSED && failures < 4) return;
      events.close();
      reject(new Error("The connection to the app is lost. Is it still running?"));
    };
  });
}
