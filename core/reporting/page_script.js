// The script of a report's page: tables that sort and filter, values of marks on a touch screen, copying of commands.
// It loads nothing; without it the page shows the same tables and figures. The template includes it.
(() => {
  "use strict";
  const FEWEST_TO_FILTER = 5;
  const collator = new Intl.Collator("en", { numeric: true });
  document.documentElement.classList.add("scripted");

  function make(tag, properties, ...children) {
    const element = Object.assign(document.createElement(tag), properties);
    element.append(...children);
    return element;
  }

  // -- sorting

  function numberOf(text) {
    return text === "" ? null : Number(text.replace(/,/g, ""));
  }

  // Return a comparison of two texts: as numbers where all texts of the column are numbers or empty.
  function comparison(texts) {
    const numeric = texts.every((text) => !Number.isNaN(numberOf(text)));
    return numeric ? (a, b) => numberOf(a) - numberOf(b) : collator.compare;
  }

  function sort(table, head) {
    const column = [...head.parentNode.children].indexOf(head);
    const descending = head.getAttribute("aria-sort") === "ascending";
    const body = table.tBodies[0];
    const lines = [...body.rows].map((row) => [row.cells[column].textContent.trim(), row]);
    const compare = comparison(lines.map(([text]) => text));
    lines.sort(([a], [b]) => {
      // lines without a value stay at the end
      if (a === "" || b === "") return (a === "") - (b === "");
      return descending ? compare(b, a) : compare(a, b);
    });
    for (const other of head.parentNode.children) other.removeAttribute("aria-sort");
    head.setAttribute("aria-sort", descending ? "descending" : "ascending");
    body.append(...lines.map(([, row]) => row));
  }

  function sortable(table) {
    for (const head of table.tHead.rows[0].cells) {
      if (!head.textContent || head.classList.contains("repeat")) continue;
      const button = make("button", { type: "button", title: "sort" }, ...head.childNodes);
      button.addEventListener("click", () => sort(table, head));
      head.append(button);
    }
  }

  // -- filtering

  function filterable(table, box) {
    const count = make("output", {});
    const field = make("input", { type: "search", autocomplete: "off", placeholder: "words that a line contains" });
    let texts;
    field.addEventListener("input", () => {
      texts ??= new Map([...table.tBodies[0].rows].map((row) => [row, row.innerText.toLowerCase()]));
      const words = field.value.toLowerCase().split(/\s+/).filter(Boolean);
      let left = 0;
      for (const [row, text] of texts) {
        row.hidden = !words.every((word) => text.includes(word));
        left += !row.hidden;
      }
      count.textContent = words.length ? `${left} of ${texts.size}` : "";
    });
    box.before(make("p", { className: "filter" }, make("label", {}, "Filter ", field), count));
  }

  for (const box of document.querySelectorAll(".table")) {
    const table = box.querySelector("table");
    const lines = table.tBodies[0].rows.length;
    if (table.tHead && lines > 1) sortable(table);
    if (lines >= FEWEST_TO_FILTER) filterable(table, box);
  }

  // -- values of marks: browsers show titles while a mouse hovers, a touch shows them below the figure

  function titled(element, figure) {
    for (; element && element !== figure; element = element.parentNode) {
      const title = [...element.children].find((child) => child.localName === "title");
      if (title) return title.textContent;
    }
    return "";
  }

  for (const figure of document.querySelectorAll("figure")) {
    const picked = make("output", { className: "picked" });
    figure.querySelector("svg").after(picked);
    figure.addEventListener("click", (event) => {
      picked.textContent = titled(event.target, figure);
    });
  }

  // -- copying

  async function copy(text) {
    try {
      await navigator.clipboard.writeText(text);
    } catch {
      // not all browsers let a file use the clipboard
      const area = make("textarea", { value: text });
      document.body.append(area);
      area.select();
      document.execCommand("copy");
      area.remove();
    }
  }

  document.addEventListener("click", async (event) => {
    const button = event.target.closest("[data-copy]");
    if (!button) return;
    await copy(button.dataset.copy);
    button.textContent = "copied";
    setTimeout(() => { button.textContent = "copy"; }, 1500);
  });
})();
