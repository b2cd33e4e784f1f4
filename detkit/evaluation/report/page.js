"use strict";

// Tables: a click on a head sorts, another one turns the order; what is unknown stays last.
for (const head of document.querySelectorAll("table.sortable thead th")) {
  head.querySelector("button").addEventListener("click", () => sortBy(head));
}

function sortBy(head) {
  const body = head.closest("table").tBodies[0];
  const column = head.cellIndex;
  const textual = head.classList.contains("text");
  const now = head.getAttribute("aria-sort");
  // numbers begin with the highest, names with A
  const descending = now ? now === "ascending" : !textual;
  for (const other of head.parentNode.cells) other.removeAttribute("aria-sort");
  head.setAttribute("aria-sort", descending ? "descending" : "ascending");
  const keyed = Array.from(body.rows, (row) => [keyOf(row.cells[column], textual), row]);
  keyed.sort(([a], [b]) => {
    if (a === null || b === null) return (a === null) - (b === null);
    const order = textual ? a.localeCompare(b, undefined, { numeric: true }) : a - b;
    return descending ? -order : order;
  });
  body.append(...keyed.map(([, row]) => row));
}

function keyOf(cell, textual) {
  if (textual) return cell.textContent;
  return cell.dataset.value === undefined ? null : Number(cell.dataset.value);
}

// A filter shows the rows of its table whose text contains what is typed.
for (const input of document.querySelectorAll("input[data-filters]")) {
  const table = document.getElementById(input.dataset.filters);
  const count = document.getElementById(`${input.dataset.filters}-count`);
  input.addEventListener("input", () => {
    const wanted = input.value.trim().toLowerCase();
    let shown = 0;
    for (const row of table.tBodies[0].rows) {
      row.hidden = !row.cells[0].textContent.toLowerCase().includes(wanted);
      shown += !row.hidden;
    }
    count.textContent = wanted ? `${shown} of ${table.tBodies[0].rows.length}` : "";
  });
}

// Curves of one class in place of those of all; the numbers are thousandths, -1 for none.
const data = document.getElementById("curve-data");
if (data) {
  const { frame, lines } = JSON.parse(data.textContent);
  const choice = document.getElementById("curve-class");
  choice.addEventListener("change", () => {
    for (const path of document.querySelectorAll("path[data-line]")) {
      path.setAttribute("d", pathOf(lines[path.dataset.line][choice.selectedIndex], frame));
    }
  });
}

function pathOf(values, [left, top, width, height]) {
  let pen = "M";
  return values.map((value, index) => {
    if (value < 0) {
      pen = "M";
      return "";
    }
    const x = left + (index / (values.length - 1)) * width;
    const step = `${pen}${x.toFixed(1)} ${(top + (1 - value / 1000) * height).toFixed(1)}`;
    pen = "L";
    return step;
  }).join("");
}

// A click makes a picture large, another one small again.
for (const picture of document.querySelectorAll("svg.picture")) {
  picture.addEventListener("click", () => picture.parentNode.classList.toggle("large"));
}
