// Asking, and showing what was answered: the order of the page.

const PANELS = ["taking", "testing", "removing", "removal"];
const result = find("result");

// Draw the open answer; what was chosen in the report is chosen again.
async function show(wanted = null, focus = null) {
  const [summary, page] = await Promise.all([
    request(`/answers/${open.answer}/summary`).then((response) => response.json()),
    request(`/answers/${open.answer}/page`).then((response) => response.text()),
  ]);
  clear();
  open.summary = summary;
  // the page's own server wrote this, with all texts escaped; scripts inside would not run
  result.innerHTML = page;
  result.querySelector(".finding").append(find("taking"));
  find("explore").after(find("testing"));
  (find("trust") ?? find("testing")).after(find("removing"), find("removal"));
  open.report = window.mountReport();
  await open.report.opened;
  open.report.choose(wanted ?? readAddress(open.report, location.hash));
  const seen = find("removed-part");
  if (seen !== null) find("removed-place").replaceChildren(seen);
  find("take-report").href = `/answers/${open.answer}/report.html`;
  find("take-numbers").href = `/answers/${open.answer}/numbers.zip`;
  find("take-note").textContent = "";
  open.report.follow(LINKED, writeAddress);
  open.report.follow(["signal", "layer", "target"], showTested);
  open.report.follow(["layer"], () => {
    for (const chart of document.querySelectorAll("#removing .chart, #removal .chart")) chart.markLayer?.();
  });
  showTested();
  showRemoved();
  showCurve();
  document.body.dataset.answer = open.answer;
  document.title = `${summary.question.slice(0, 80)} · vlmflow`;
  if (focus !== null) find(focus).focus({ preventScroll: true });
}

// Draw the same answer again with what has been measured since, without moving the page.
async function refresh(focus) {
  const before = find(focus).getBoundingClientRect().top;
  const kept = {};
  for (const name of [...LINKED, "look", "reach", "steps", "opacity", "view", "region"]) kept[name] = open.report.choice[name];
  await show(kept, focus);
  window.scrollBy({ top: find(focus).getBoundingClientRect().top - before, behavior: "instant" });
}

function clear() {
  open.report?.closed();
  open.report = null;
  find("kept").append(...PANELS.map(find));
  for (const place of ["removed-place", "removed-pictures"]) find(place).replaceChildren();
  result.replaceChildren();
  delete document.body.dataset.answer;
  document.title = "vlmflow";
}

function offerAsking() {
  const question = find("question-text");
  question.maxLength = open.about.most.question;
  find("longest").max = open.about.most.new_tokens;
  find("ask").addEventListener("submit", async (event) => {
    event.preventDefault();
    if (running !== null) return;
    if (chosen.length === 0) return complain("ask-work", "Drop in a picture first, or take a sample.");
    if (question.value.trim() === "") return complain("ask-work", "Write a question first.");
    const reply = find("reply");
    find("reply-part").hidden = false;
    reply.textContent = "";
    reply.className = "reply running";
    const body = { pictures: chosen.map(({ picture }) => picture), question: question.value, max_new_tokens: find("longest").valueAsNumber };
    const ended = await work("/answers", body, "ask-work", ({ text, status }) => {
      if (text !== undefined) reply.textContent = text;
      if (status !== "running") reply.classList.remove("running");
    });
    reply.classList.remove("running");
    reply.classList.toggle("stopped", !ended.done);
    if (!ended.done) {
      find("reply-part").hidden = reply.textContent === "";
      return;
    }
    open.answer = ended.answer;
    history.pushState(null, "", `/answers/${open.answer}`);
    try {
      await show({});
    } catch (error) {
      complain("ask-work", error.message);
    }
  });
  // Enter asks, with Shift it begins a new line
  question.addEventListener("keydown", (event) => {
    if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
    event.preventDefault();
    find("ask").requestSubmit();
  });
}

// Open the answer that the address names.
async function openAddress() {
  const name = location.pathname.match(/^\/answers\/([\w-]+)$/)?.[1];
  if (name === undefined) {
    clear();
    open.answer = null;
    find("reply-part").hidden = true;
    return;
  }
  open.answer = name;
  try {
    await show();
    choosePictures(open.summary.pictures);
    find("question-text").value = open.summary.question;
    find("reply-part").hidden = false;
    find("reply").textContent = open.summary.answer;
  } catch (error) {
    clear();
    complain("ask-work", error.message);
  }
}

async function waitForModel() {
  const place = find("model");
  let offered = false, before = "";
  for (;;) {
    try {
      open.about = await (await request("/about")).json();
    } catch (error) {
      place.textContent = error.message;
      return;
    }
    const { model, status, says, offers } = open.about;
    place.textContent = status === "ready" ? model : status === "failed" ? sentence(says) : `${model}: loading`;
    place.classList.toggle("failed", status === "failed");
    if (offers !== null && !offered) {
      offered = true;
      offerRemoving();
      document.body.dataset.model = "ready";
    }
    if (status === "ready") return;
    if (status === "failed" && before !== status) complain("ask-work", sentence(says));
    before = status;
    await new Promise((resolve) => setTimeout(resolve, status === "failed" ? 3000 : 400));
  }
}

async function begin() {
  offerTheme();
  open.about = await (await request("/about")).json();
  find("model").textContent = open.about.model;
  offerPictures();
  offerAsking();
  offerTesting();
  offerCurve();
  offerLink();
  window.addEventListener("popstate", openAddress);
  document.body.dataset.page = "ready";
  await openAddress();
  // loading keeps the server's process busy: what the page shows comes first
  await Promise.allSettled([...find("samples").querySelectorAll("img")].map((image) => image.decode()));
  await send("/model", {});
  await waitForModel();
}

begin().catch((error) => complain("ask-work", error.message));
