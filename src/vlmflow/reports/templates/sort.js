"use strict";
// Sorts the rows of the list by what a heading names; once more turns the order around.
{
  const body = document.querySelector("#answers tbody");
  const heads = [...document.querySelectorAll("#answers th[data-sort]")];
  for (const head of heads) {
    head.querySelector("button").addEventListener("click", () => {
      const down = head.getAttribute("aria-sort") === "ascending";
      for (const other of heads) other.removeAttribute("aria-sort");
      head.setAttribute("aria-sort", down ? "descending" : "ascending");
      const value = (row) => row.dataset[head.dataset.sort];
      const order = (a, b) => head.dataset.sort === "question" ? value(a).localeCompare(value(b)) : Number(value(a)) - Number(value(b));
      const rows = [...body.rows].sort((a, b) => (down ? order(b, a) : order(a, b)) || a.dataset.place - b.dataset.place);
      body.append(...rows);
    });
  }
}
