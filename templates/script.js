"use strict";
// Comfort only: without this script every number is on the page all the same.

// Tables sort by a click on a column's head; data-sort holds the exact value of a cell.
for (const table of document.querySelectorAll("table[data-sortable]")) {
  const heads = [...table.tHead.rows[0].cells];
  heads.forEach((head, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...head.childNodes);
    head.append(button);
    button.addEventListener("click", () => {
      const down = head.getAttribute("aria-sort") === "ascending";
      heads.forEach((other) => other.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", down ? "descending" : "ascending");
      const body = table.tBodies[0];
      const value = (row) => row.cells[column].dataset.sort ?? row.cells[column].textContent.trim();
      const rows = [...body.rows].sort((a, b) => compare(value(a), value(b), down));
      body.append(...rows);
    });
  });
}

function compare(a, b, down) {
  // Cells without a value stay at the end in both directions.
  if (a === "" || b === "") return (a === "") - (b === "");
  const x = Number(a), y = Number(b);
  const order = Number.isNaN(x) || Number.isNaN(y) ? a.localeCompare(b) : x - y;
  return down ? -order : order;
}

// The prevalence slider walks through the rows of its table; it computes nothing.
const slider = document.querySelector("[data-slider]");
if (slider) {
  const rows = [...document.getElementById(slider.dataset.slider).tBodies[0].rows];
  const input = slider.querySelector("input");
  const show = () => {
    const row = rows[Number(input.value)];
    for (const [index, name] of ["prevalence", "ppv", "npv"].entries()) {
      slider.querySelector(`[data-show=${name}]`).textContent = row.cells[index].textContent;
    }
    input.setAttribute("aria-valuetext", row.cells[0].textContent);
    rows.forEach((other) => other.classList.toggle("winner", other === row));
  };
  input.max = String(rows.length - 1);
  input.value = String(Math.floor(rows.length / 2));
  input.addEventListener("input", show);
  slider.hidden = false;
  show();
}

// The table of contents follows: the last section whose head has passed the upper third.
const links = [...document.querySelectorAll(".toc a")];
const places = links.map((link) => document.getElementById(link.hash.slice(1)));
let current = null;
function follow() {
  let index = 0;
  places.forEach((place, i) => { if (place.getBoundingClientRect().top < innerHeight / 3) index = i; });
  if (links[index] === current) return;
  current?.removeAttribute("aria-current");
  current = links[index];
  current.setAttribute("aria-current", "true");
  const bar = current.closest(".toc");
  if (bar.scrollWidth > bar.clientWidth) {
    bar.scrollLeft = current.offsetLeft - bar.clientWidth / 2 + current.offsetWidth / 2;
  }
}
if (links.length) {
  addEventListener("scroll", follow, { passive: true });
  follow();
}
