// Two or more finished jobs side by side, and sparsity against perplexity.

import { getJob, getReport } from "./api.js";
import { h, problemBox } from "./dom.js";
import { bytes, change, count, duration, leaf, number, percent, words } from "./format.js";
import { title } from "./job_parts.js";
import { barsByLayer, scatter, tick } from "./plots.js";

const MOST = 8;
const letter = (place) => String.fromCharCode(65 + place);

/** Compare the jobs that `?job=…&job=…` names. */
export async function showCompare(main, signal, query) {
  const ids = [...new Set(query.getAll("job"))].slice(0, MOST);
  const heading = h("div", { class: "headline" }, h("h1", { tabindex: "-1" }, "Comparison"));
  main.append(h("p", { class: "kicker" }, h("a", { href: "#/" }, "Jobs")), heading);
  if (ids.length < 2) {
    main.append(h("p", { class: "card empty" }, "Choose two or more finished jobs in the list."));
    return;
  }
  const found = await Promise.allSettled(ids.map(async (id) => ({ job: await getJob(id, signal), report: await getReport(id, signal) })));
  if (signal.aborted) return;
  for (const [place, one] of found.entries()) {
    if (one.status === "rejected") main.append(problemBox({ message: `${ids[place]}: ${one.reason.message}`, requestId: one.reason.requestId }));
  }
  const entries = found.filter((one) => one.status === "fulfilled").map((one, place) => ({ ...one.value, letter: letter(place) }));
  if (entries.length === 0) return;
  heading.append(h("button", { type: "button", onclick: () => saveCsv(entries) }, "Save as CSV"));
  main.append(quality(entries), table(entries), widths(entries));
}

function quality(entries) {
  const judged = entries.filter(({ report }) => report.perplexity);
  const caption = h("figcaption", {}, h("h2", {}, "Sparsity against perplexity"));
  if (!judged.length) return h("figure", {}, caption, h("p", { class: "hint" }, "None of these jobs had an evaluation text."));
  const groups = Map.groupBy(judged, yardstick);
  if (groups.size > 1) caption.append(h("p", { class: "notice note" }, "Not all were measured on the same model and text: compare points of one colour only."));
  const series = [...groups.values()].map((group, place) => ({
    name: leaf(group[0].report.model.uri),
    tone: `tone${(place + 1) % 8}`,
    points: [
      { x: 0, y: group[0].report.perplexity.before, label: "dense", hollow: true, text: `dense ${leaf(group[0].report.model.uri)}: perplexity ${number(group[0].report.perplexity.before)}` },
      ...group.map(({ report, letter: label }) => ({ x: report.sparsity.reached, y: report.perplexity.after, label, text: `${label}: sparsity ${percent(report.sparsity.reached, 1)}, perplexity ${number(report.perplexity.after)}` })),
    ],
  }));
  return h("figure", {}, caption, scatter(series, { x: "sparsity reached", y: "perplexity", formatX: percent, formatY: tick }));
}

/** Perplexities compare where the dense model, the text and the windows are the same. */
function yardstick({ report: { model, perplexity } }) {
  return [model.digest, perplexity.text_sha256, perplexity.sequences, perplexity.sequence_length].join(" ");
}

function table(entries) {
  const rows = [
    ["Model", ({ report }) => leaf(report.model.uri)],
    ["Structures", ({ job }) => job.spec.pruning.structures.map(words).join(", ")],
    ["Sparsity", ({ report }) => percent(report.sparsity.reached, 1)],
    ["Perplexity", ({ report }) => (report.perplexity ? `${number(report.perplexity.after)} (× ${number(report.perplexity.ratio, 3)})` : "–")],
    ["Size", ({ report: { before, after } }) => `${bytes(after.bytes)} (${change(before.bytes, after.bytes)})`],
    ["Parameters", ({ report }) => count(report.after.parameters)],
    ["KV cache per token", ({ report }) => bytes(report.after.kv_cache_bytes_per_token)],
    ["Method", ({ job: { spec: { pruning } } }) => `${pruning.allocation}, ${words(pruning.energy)}, ${pruning.solver}`],
    ["Training", ({ job: { spec: { pruning } } }) => [pruning.recover ? `recovery ${pruning.recover.steps}` : null, pruning.distill ? `distillation ${pruning.distill.steps}` : null].filter(Boolean).join(", ") || "none"],
    ["Layout", ({ job }) => words(job.spec.pruning.layout)],
    ["Calibration", ({ job: { spec: { calibration } } }) => `${calibration.samples} × ${calibration.sequence_length}`],
    ["Peak memory", ({ report: { memory } }) => bytes(memory.device_peak_bytes.measured ?? memory.host_peak_bytes.measured)],
    ["Time", ({ report }) => duration(report.phases.reduce((sum, phase) => sum + phase.seconds, 0))],
  ];
  return h("section", { class: "card" }, h("h2", {}, "Side by side"),
    h("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": "Side by side" }, h("table", { class: "versus" },
      h("thead", {}, h("tr", {}, h("td", {}), entries.map((entry) => h("th", { scope: "col" }, h("a", { href: `#/jobs/${entry.job.id}`, title: title(entry.job) }, entry.letter))))),
      h("tbody", {}, rows.map(([name, value]) => {
        const cells = entries.map(value);
        const same = cells.every((cell) => cell === cells[0]);
        return h("tr", { class: same ? "same" : null }, h("th", { scope: "row" }, name), cells.map((cell) => h("td", {}, cell)));
      })))));
}

/** A file with a row for each job, in exact figures. Empty where nothing was measured. */
function saveCsv(entries) {
  const columns = {
    job: ({ job }) => job.id,
    name: ({ job }) => title(job),
    model: ({ report }) => report.model.uri,
    sparsity: ({ report }) => report.sparsity.reached,
    parameters_before: ({ report }) => report.before.parameters,
    parameters: ({ report }) => report.after.parameters,
    bytes_before: ({ report }) => report.before.bytes,
    bytes: ({ report }) => report.after.bytes,
    perplexity_before: ({ report }) => report.perplexity?.before,
    perplexity: ({ report }) => report.perplexity?.after,
    perplexity_ratio: ({ report }) => report.perplexity?.ratio,
    task_retention: ({ report }) => report.tasks?.retention,
    decode_gain: ({ report }) => report.speed?.decode_gain,
    prefill_gain: ({ report }) => report.speed?.prefill_gain,
    seconds: ({ report }) => report.phases.reduce((sum, phase) => sum + phase.seconds, 0),
  };
  const lines = [Object.keys(columns), ...entries.map((entry) => Object.values(columns).map((value) => value(entry)))];
  const text = lines.map((cells) => cells.map(csvCell).join(",")).join("\r\n");
  const address = URL.createObjectURL(new Blob([`${text}\r\n`], { type: "text/csv" }));
  h("a", { href: address, download: "comparison.csv" }).click();
  URL.revokeObjectURL(address);
}

/** RFC 4180. A text that a spreadsheet would take for a formula begins with an apostrophe. */
function csvCell(value) {
  if (value === null || value === undefined) return "";
  if (typeof value === "number") return String(value);
  const safe = /^[=+\-@\t\r]/.test(value) ? `'${value}` : value;
  return /[",\r\n]/.test(safe) ? `"${safe.replaceAll('"', '""')}"` : safe;
}

function widths(entries) {
  return h("figure", {}, h("figcaption", {}, h("h2", {}, "FFN channels kept, by layer")),
    entries.map((entry) => h("div", { class: "panel" }, h("h3", {}, `${entry.letter} · ${title(entry.job)}`),
      barsByLayer(entry.report.layers.map((one) => ({ value: one.width_after, of: one.width_before })), { name: `${entry.letter}: FFN channels kept`, format: count }))));
}
