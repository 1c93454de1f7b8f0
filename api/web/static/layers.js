// Widths, heads and energies by layer, from a running job's events or from its report.

import { h } from "./dom.js";
import { ABSENT, count, number } from "./format.js";
import { barsByLayer, dotsByLayer } from "./plots.js";

/** The content of a job's events `layers` so far. Later events replace earlier ones. */
export function layerNotes() {
  let rows = [];
  return {
    /** A row for each layer, with the properties of the report that are known. */
    get rows() { return Array.from(rows, (row, index) => row ?? { index }); },
    note({ index, ...columns }) {
      index.forEach((layer, place) => {
        rows[layer] ??= { index: layer };
        for (const [name, values] of Object.entries(columns)) {
          if (values[place] !== null) rows[layer][name] = values[place];
        }
      });
    },
    clear() { rows = []; },
  };
}

/** Figures, hidden until they have data; kept up to date by `update(rows)`. */
export function layerFigures() {
  const table = layerTable();
  const widths = figure("FFN channels kept, by layer", table.node);
  const energies = figure("Energy, by layer");
  const heads = figure("Query heads kept, by layer");
  const experts = figure("Experts kept, by layer");
  return {
    nodes: [widths.node, energies.node, heads.node, experts.node],
    update(given) {
      const rows = given.map(withExperts);
      const routed = rows.filter((one) => known(one.experts_after));
      if (routed.length) {
        const kl = rows.find((one) => known(one.kl))?.kl;
        const probed = known(kl) ? ` Without the others, the model diverges from the dense one by ${number(kl, 3)} nats per token on held-out text.` : "";
        experts.update(true, `${count(sum(routed, "experts_after"))} of ${count(sum(routed, "experts_before"))} stay.${probed}`, () =>
          barsByLayer(rows.map((one) => ({ value: one.experts_after, of: one.experts_before, absent: "no experts" })), { name: "Experts kept", format: count }));
        if (!rows.some((one) => known(one.width_after) && one.width_after !== one.width_before)) {
          widths.update(false);
          energies.update(false);
          heads.update(false);
          return;
        }
      } else experts.update(false);
      const chosen = rows.filter((one) => known(one.width_after));
      const measured = rows.filter((one) => known(one.energy));
      const solved = rows.filter(isSolved);
      const far = chosen.length && solved.length < rows.length ? ` ${solved.length} of ${rows.length} layers are solved so far, in full colour.` : "";
      table.update(rows);
      widths.update(chosen.length > 0, `${count(sum(chosen, "width_after"))} of ${count(sum(chosen, "width_before"))} stay.${far}`, () =>
        barsByLayer(rows.map((one) => bar(one, "width")), { name: "FFN channels kept", format: count }));
      energies.update(measured.length > 0, `How much the model's loss grows for each unit of damage in the layer, on a logarithmic axis. Together with the damage curves it decides where channels go.${measured.length < rows.length ? ` ${measured.length} of ${rows.length} layers are measured so far.` : ""}`, () =>
        dotsByLayer(rows.map((one) => one.energy), { name: "Energy", format: (value) => number(value, 3), tone: "violet" }));
      const attended = rows.filter((one) => known(one.query_heads_after));
      const [after, before] = [sum(attended, "query_heads_after"), sum(attended, "query_heads_before")];
      heads.update(after !== before, `${after} of ${before} stay.${far}`, () =>
        barsByLayer(rows.map((one) => bar(one, "query_heads")), { name: "Query heads kept", format: count }));
    },
  };
}

/** A layer of a running job, or of a report, in the terms of a running job. */
function withExperts(row) {
  if (!row.experts) return row;
  const before = row.experts.scores.length;
  return { ...row, experts_before: before, experts_after: before - row.experts.removed.length };
}

/** What is kept of a layer; paler until it is solved. */
function bar(row, name) {
  const solved = isSolved(row);
  const note = solved ? `, error ${errorOf(row)}` : ", not solved yet";
  return { value: row[`${name}_after`], of: row[`${name}_before`], note, tone: solved ? undefined : "planned" };
}

function figure(title, more = null) {
  const caption = h("p", { class: "hint" });
  const plot = h("div", {});
  const node = h("figure", { hidden: true }, h("figcaption", {}, h("h2", {}, title), caption), plot, more);
  return {
    node,
    update(shown, text, draw) {
      node.hidden = !shown;
      caption.textContent = shown ? text : "";
      if (shown) plot.replaceChildren(draw());
    },
  };
}

/** A table that stays open, and scrolled where it was, while its rows change. */
function layerTable() {
  const head = ["Layer", "FFN channels", "Query heads", "Energy", "Damage", "Error"];
  const body = h("tbody", {});
  const share = (one, name) => (known(one[`${name}_after`]) ? `${one[`${name}_after`]} / ${one[`${name}_before`]}` : ABSENT);
  const cells = (one) => [one.index, share(one, "width"), share(one, "query_heads"), number(one.energy, 3), number(one.predicted_damage, 3), isSolved(one) ? errorOf(one) : ABSENT];
  return {
    node: h("details", {}, h("summary", {}, "As a table"),
      h("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": "Layers" }, h("table", {},
        h("thead", {}, h("tr", {}, head.map((name) => h("th", { scope: "col", class: "num" }, name)))), body))),
    update: (rows) => body.replaceChildren(...rows.map((one) => h("tr", {}, cells(one).map((cell) => h("td", { class: "num" }, String(cell)))))),
  };
}

/** Whether a layer is solved: its error is set, or null (a report has its damping, too). */
const isSolved = (row) => known(row.reconstruction_error) || row.solved === true || known(row.damping);
const errorOf = (row) => (known(row.reconstruction_error) ? number(row.reconstruction_error, 3) : "unknown");
const known = (value) => value !== undefined && value !== null;
const sum = (rows, key) => rows.reduce((total, one) => total + one[key], 0);
