"use strict";
(() => {
  const value = (row, column) => {
    const cell = row.cells[column];
    return cell.dataset.sort ?? cell.textContent;
  };
  const compare = (a, b) => {
    const [x, y] = [Number(a), Number(b)];
    return a !== "" && b !== "" && !Number.isNaN(x - y) ? x - y : a.localeCompare(b);
  };
  for (const table of document.querySelectorAll("table.sortable")) {
    const heads = [...table.tHead.rows[0].cells];
    heads.forEach((head, column) => {
      const button = document.createElement("button");
      button.type = "button";
      button.append(...head.childNodes);
      head.append(button);
      button.addEventListener("click", () => {
        const up = head.getAttribute("aria-sort") !== "ascending";
        heads.forEach((other) => other.removeAttribute("aria-sort"));
        head.setAttribute("aria-sort", up ? "ascending" : "descending");
        const rows = [...table.tBodies[0].rows];
        rows.sort((a, b) => (up ? 1 : -1) * compare(value(a, column), value(b, column)));
        table.tBodies[0].append(...rows);
      });
    });
  }
  const filter = document.getElementById("filter");
  const select = filter.querySelector("select");
  const status = filter.querySelector("[role=status]");
  filter.hidden = select.options.length < 3;
  select.addEventListener("change", () => {
    let left = 0;
    for (const part of document.querySelectorAll("main [data-concept]")) {
      part.hidden = select.value !== "" && part.dataset.concept !== select.value;
      left += part.hidden ? 0 : 1;
    }
    status.textContent = select.value === "" ? "" : `${left} rows and texts`;
  });
  // what a reader closed is printed all the same
  addEventListener("beforeprint", () => {
    for (const part of document.querySelectorAll("details")) part.open = true;
  });
})();
