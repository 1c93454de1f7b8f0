// Tables that scroll inside themselves on narrow screens.

import { h } from "./dom.js";

/** Rows of a name, then cells, which are numbers unless `text` says otherwise. Cells may be nodes. */
export function table(name, head, rows, { text = false } = {}) {
  const side = text ? null : "num";
  return h("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": name }, h("table", {},
    h("thead", {}, h("tr", {}, head.map((cell, place) => h("th", { scope: "col", class: place ? side : null }, cell)))),
    h("tbody", {}, rows.map(([first, ...cells]) => h("tr", {}, h("th", { scope: "row" }, first), cells.map((cell) => h("td", { class: side }, cell)))))));
}
