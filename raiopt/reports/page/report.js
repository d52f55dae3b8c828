"use strict";

/* The table of jobs. */

function sortable() {
  const body = find("#table tbody");
  const heads = all("#table thead th");
  const first = heads.findIndex((head) => head.classList.contains("first"));
  const value = (row, column) => {
    const lost = row.cells.length < heads.length; // one cell says why, where others have their figures
    if (lost && column >= first && column < heads.length - 1) return null;
    const cell = lost && column >= first ? row.cells[row.cells.length - 1] : row.cells[column];
    return cell.dataset.value === undefined ? textOf(cell) : Number(cell.dataset.value);
  };
  const textOf = (cell) => cell.textContent.trim();
  const compare = (a, b) => (typeof a === "number" && typeof b === "number" ? a - b : String(a).localeCompare(String(b), "en", { numeric: true }));
  heads.forEach((head, column) => {
    const button = find("button", head);
    if (!button) return;
    button.onclick = () => {
      const down = head.getAttribute("aria-sort") === "ascending";
      heads.forEach((other) => other.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", down ? "descending" : "ascending");
      const rows = [...body.rows].map((row) => [value(row, column), row]);
      rows.sort(([a], [b]) => (a === null || b === null ? (a === null) - (b === null) : (down ? -1 : 1) * compare(a, b)));
      body.append(...rows.map(([, row]) => row));
    };
  });
}

function filterable() {
  const [field, output, rows] = [find("#filter"), find("#shown"), all("#table tbody tr")];
  if (!field) return;
  const texts = new Map(rows.map((row) => [row, row.textContent.toLowerCase().replace(/\s+/g, " ")]));
  field.oninput = () => {
    const words = field.value.toLowerCase().split(/\s+/).filter(Boolean);
    rows.forEach((row) => { row.hidden = !words.every((word) => texts.get(row).includes(word)); });
    output.textContent = words.length ? `${rows.filter((row) => !row.hidden).length} of ${rows.length} jobs` : "";
  };
}

/* Samples: which run, and one of them enlarged. */

function runs() {
  const choice = find("#run");
  if (choice) choice.onchange = () => all("[data-run]").forEach((part) => { part.hidden = part.dataset.run !== choice.value; });
}

function enlarging() {
  const dialog = find("#enlarged");
  if (!dialog) return;
  let at;
  const show = (button) => {
    at = button;
    const pictures = find(".pictures", dialog);
    pictures.replaceChildren(...all("img", button).map((image) => image.cloneNode()));
    pictures.classList.toggle("sharp", button.parentElement.classList.contains("sharp"));
    const words = all("figcaption div", button.parentElement).map((part) => [find("b", part)?.textContent, find("small", part).textContent]);
    const [clean, delta, perturbed] = words.map(([name, number]) => (name === undefined ? number : `${name} (${number})`));
    find("p", dialog).textContent = `${button.getAttribute("aria-label").replace("Enlarge s", "S")}. Clean: ${clean}. Perturbation: ${delta}. Perturbed: ${perturbed}.`;
  };
  const move = (by) => {
    const buttons = all(".zoom", at.closest("[data-run]"));
    show(buttons[(buttons.indexOf(at) + by + buttons.length) % buttons.length]);
  };
  all(".zoom").forEach((button) => { button.onclick = () => { show(button); dialog.showModal(); }; });
  all("[data-move]", dialog).forEach((button) => { button.onclick = () => move(Number(button.dataset.move)); });
  find("[data-close]", dialog).onclick = () => dialog.close();
  dialog.onclose = () => at.focus();
  dialog.onkeydown = (event) => {
    const by = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (by) move(by);
  };
}

function copying() {
  all(".copy").forEach((button) => {
    button.onclick = async () => {
      const code = find("code", button.parentElement);
      try {
        await navigator.clipboard.writeText(code.textContent);
        button.textContent = "Copied";
      } catch {
        getSelection().selectAllChildren(code); // where the browser forbids it, the text is at least selected
        button.textContent = "Selected";
      }
      setTimeout(() => { button.textContent = "Copy"; }, 2000);
    };
  });
}

function themes() {
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const button = find("#theme");
  const set = (theme) => {
    document.documentElement.dataset.theme = theme;
    button.textContent = theme === "dark" ? "Light" : "Dark";
    redraws.forEach((redraw) => redraw());
  };
  const other = () => (document.documentElement.dataset.theme === "dark" ? "light" : "dark");
  button.hidden = false;
  button.onclick = () => set(other());
  dark.onchange = () => set(dark.matches ? "dark" : "light");
  let before;
  addEventListener("beforeprint", () => { before = document.documentElement.dataset.theme; set("light"); });
  addEventListener("afterprint", () => set(before));
  set(dark.matches ? "dark" : "light");
}

themes();
sortable();
filterable();
runs();
enlarging();
copying();
[radiusPlot, stepsPlot, mapPlot, parallelPlot].forEach((make) => make());
