// Sorts and filters the table of prompts. Without it the table stands as it is, most similar first.
"use strict";
for (const section of document.querySelectorAll(".sortable")) {
  const table = section.querySelector("table"), body = table.tBodies[0], rows = [...body.rows];
  const words = section.querySelector("input[type=search]"), copied = section.querySelector("input[type=checkbox]");
  const method = section.querySelector("select"), count = section.querySelector("output");
  const key = (row, i) => row.cells[i].dataset.sort ?? row.cells[i].textContent.trim();
  const compare = (a, b) => isNaN(a) || isNaN(b) ? a.localeCompare(b) : a - b;

  const filter = () => {
    const wanted = words.value.trim().toLowerCase();
    for (const row of rows)
      row.hidden = !(row.dataset.prompt ?? row.cells[0].textContent).toLowerCase().includes(wanted)
        || (method.value !== "" && row.dataset.method !== method.value) || (copied.checked && row.dataset.copies === "0");
    count.value = `${rows.filter(row => !row.hidden).length} of ${rows.length} lines`;
  };
  const sort = (header, i) => {
    const down = header.getAttribute("aria-sort") !== "descending";
    for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
    header.setAttribute("aria-sort", down ? "descending" : "ascending");
    body.append(...rows.sort((a, b) => (down ? -1 : 1) * compare(key(a, i), key(b, i))));
  };

  [...table.tHead.rows[0].cells].forEach((header, i) => {
    const button = document.createElement("button");
    button.append(...header.childNodes);
    button.addEventListener("click", () => sort(header, i));
    header.append(button);
  });
  for (const control of [words, method, copied]) control.addEventListener("input", filter);
  section.querySelector(".tools").hidden = false;
  filter();
}
