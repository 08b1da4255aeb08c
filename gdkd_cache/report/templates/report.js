"use strict";
/* Tables can be sorted by a column and filtered by a text; without this script they are plain tables. */
for (const table of document.querySelectorAll("table")) {
  const body = table.tBodies[0];
  const heads = Array.from(table.tHead.rows[0].cells);
  const rows = Array.from(body.rows);

  const compare = (column, sign) => (one, other) => {
    const [a, b] = [one.cells[column], other.cells[column]];
    const [x, y] = [a.dataset.number, b.dataset.number];
    if (x !== undefined && y !== undefined) return sign * (Number(x) - Number(y));
    if (x !== undefined || y !== undefined) return x === undefined ? 1 : -1; /* what is not known comes last */
    return sign * a.textContent.localeCompare(b.textContent, undefined, { numeric: true });
  };

  heads.forEach((head, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...head.childNodes);
    head.append(button);
    head.setAttribute("aria-sort", "none");
    const first = rows.some((row) => row.cells[column].dataset.number !== undefined) ? "descending" : "ascending";
    button.addEventListener("click", () => {
      const now = head.getAttribute("aria-sort");
      const next = now === "none" ? first : now === "descending" ? "ascending" : "descending";
      for (const other of heads) other.setAttribute("aria-sort", "none");
      head.setAttribute("aria-sort", next);
      rows.sort(compare(column, next === "ascending" ? 1 : -1));
      body.append(...rows);
    });
  });

  if ("filtered" in table.dataset) {
    const box = document.createElement("div");
    const label = document.createElement("label");
    const input = document.createElement("input");
    const count = document.createElement("output");
    box.className = "filter";
    label.append("Rows with ", input);
    input.type = "search";
    count.setAttribute("aria-live", "polite");
    count.textContent = `${rows.length} rows`;
    input.addEventListener("input", () => {
      const wanted = input.value.toLowerCase();
      let shown = 0;
      for (const row of rows) {
        row.hidden = !row.textContent.toLowerCase().includes(wanted);
        shown += row.hidden ? 0 : 1;
      }
      count.textContent = wanted ? `${shown} of ${rows.length} rows` : `${rows.length} rows`;
    });
    box.append(label, count);
    table.parentElement.before(box);
  }
}
