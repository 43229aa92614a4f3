// Tables that are sorted by their heads and filtered by what stands above them; without a script they are whole.
function sortable(table) {
  const heads = [...table.tHead.rows[0].cells];
  heads.forEach((head, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...head.childNodes);
    head.append(button);
    button.addEventListener("click", () => {
      const order = head.getAttribute("aria-sort") === "ascending" ? "descending" : "ascending";
      heads.forEach((other) => other.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", order);
      sort(table, column, order === "ascending" ? 1 : -1);
    });
  });
}

// Numbers by their value and texts by the alphabet; what has none, as failures, last in both directions.
function sort(table, column, direction) {
  const body = table.tBodies[0];
  const numeric = table.tHead.rows[0].cells[column].classList.contains("number");
  const keyed = [...body.rows].map((row) => {
    const cell = row.cells[column];
    const text = cell.dataset.value || (cell.querySelector(".label") || cell).textContent.trim();
    const key = numeric ? Number(text) : text; // a dash or a word is no number
    return { row, key: text === "" || Number.isNaN(key) ? null : key };
  });
  const compare = (a, b) => (numeric ? a - b : a.localeCompare(b, "en", { numeric: true }));
  keyed.sort(({ key: a }, { key: b }) =>
    a === null || b === null ? (a === null) - (b === null) : direction * compare(a, b));
  body.append(...keyed.map(({ row }) => row));
}

// All words have to stand in a row, wherever; rung and state have to be those chosen.
function filterable(bar) {
  const rows = [...document.getElementById(bar.dataset.filters).tBodies[0].rows];
  const [words, rung, state] = ["words", "rung", "state"].map((name) => bar.querySelector(`[name="${name}"]`));
  const count = bar.querySelector("output");
  const texts = new Map(rows.map((row) => [row, row.textContent.toLowerCase().replace(/\s+/g, " ")]));
  const apply = () => {
    const wanted = words.value.toLowerCase().split(/\s+/).filter(Boolean);
    rows.forEach((row) => {
      row.hidden = !(
        wanted.every((word) => texts.get(row).includes(word)) &&
        (!rung.value || row.dataset.rung === rung.value) && (!state.value || row.dataset.state === state.value));
    });
    count.textContent = `${rows.filter((row) => !row.hidden).length} of ${rows.length} shown`;
  };
  const clear = () => { words.value = rung.value = state.value = ""; apply(); };
  [words, rung, state].forEach((field) => field.addEventListener("input", apply));
  bar.querySelector("button").addEventListener("click", clear);
  rows.forEach((row) => row.addEventListener("reveal", () => row.hidden && clear()));
  apply();
  bar.hidden = false;
}

document.querySelectorAll("table.sortable").forEach(sortable);
document.querySelectorAll("[data-filters]").forEach(filterable);
