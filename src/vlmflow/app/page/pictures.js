// The pictures and videos to ask about: dropped, pasted, chosen from the disk, or one of the samples.

const chosen = []; // { picture: its name on the server, source: where the page shows it from }

function showChosen() {
  find("chosen").replaceChildren(...chosen.map(({ source }, number) => {
    const remove = make("button", { type: "button", textContent: "×", "aria-label": `Remove picture ${number + 1}` });
    remove.addEventListener("click", () => {
      const [gone] = chosen.splice(number, 1);
      if (gone.source.startsWith("blob:")) URL.revokeObjectURL(gone.source);
      showChosen();
      find("files").focus();
    });
    return make("li", {}, make("img", { src: source, alt: `Picture ${number + 1}` }), remove);
  }));
  const only = chosen.length === 1 ? chosen[0].picture : null;
  for (const button of find("samples").children) button.setAttribute("aria-pressed", String(button.dataset.picture === only));
}

function choosePictures(names) {
  chosen.splice(0, chosen.length, ...names.map((picture) => ({ picture, source: `/pictures/${picture}` })));
  showChosen();
}

async function addFiles(files) {
  const most = open.about.most;
  for (const file of files) {
    if (chosen.length >= most.pictures) return complain("ask-work", `At most ${most.pictures} pictures go with one question; remove one first.`);
    if (file.size > most.picture_bytes) return complain("ask-work", `“${file.name}” is larger than ${most.picture_bytes / 2 ** 20} MiB, the most this app takes.`);
    try {
      const response = await request(`/pictures?${new URLSearchParams({ name: file.name.toWellFormed?.() ?? file.name })}`, { method: "POST", body: file });
      const { picture } = await response.json();
      // samples are there to try; who brings a picture asks about that
      if (chosen.some(({ picture: other }) => other.startsWith("sample-"))) chosen.length = 0;
      // of a video the server has drawn the first frame
      const isVideo = file.type.startsWith("video/");
      chosen.push({ picture, source: isVideo ? `/pictures/${picture}` : URL.createObjectURL(file) });
      showChosen();
      find("ask-work").replaceChildren();
    } catch (error) {
      return complain("ask-work", error.message);
    }
  }
  return undefined;
}

function offerPictures() {
  const { most, samples } = open.about;
  find("drop-note").textContent = `or drop them here: up to ${most.pictures}, ${most.picture_bytes / 2 ** 20} MiB each`;
  find("samples").replaceChildren(...samples.map(({ picture, question }, number) => {
    const button = make("button", { type: "button", title: question, "aria-label": `Sample ${number + 1}: ${question}`, "aria-pressed": "false" },
      make("img", { src: `/pictures/${picture}`, alt: "", width: 112, height: 112 }));
    button.dataset.picture = picture;
    button.addEventListener("click", () => {
      choosePictures([picture]);
      find("question-text").value = question;
      find("ask-work").replaceChildren();
    });
    return button;
  }));
  const input = find("files");
  input.addEventListener("change", async () => {
    await addFiles([...input.files]);
    input.value = ""; // the same file can be chosen again
  });
  const over = (on) => find("drop").classList.toggle("over", on);
  // a picture that misses the field must not replace the page
  for (const name of ["dragover", "drop"]) document.addEventListener(name, (event) => event.preventDefault());
  document.addEventListener("dragenter", (event) => over(event.dataTransfer.types.includes("Files")));
  document.addEventListener("dragleave", (event) => event.relatedTarget === null && over(false));
  document.addEventListener("drop", (event) => {
    over(false);
    addFiles([...event.dataTransfer.files]);
  });
  document.addEventListener("paste", (event) => {
    const files = [...event.clipboardData.files];
    if (files.length > 0) addFiles(files);
  });
}
