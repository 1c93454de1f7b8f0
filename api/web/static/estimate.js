// The estimate of a job: what it costs and gives, from the answer of `validate`.

import { h } from "./dom.js";
import { bytes, change, count, flops, number, percent, words } from "./format.js";

/** Fill `box` with the answer of a valid job; `buttons` makes those of a runtime's mends. */
export function showEstimate(box, { estimate, runtimes }, buttons) {
  const memory = estimate.device_peak_bytes
    ? [["Device memory, peak", bytes(estimate.device_peak_bytes)], ["Host memory, peak", bytes(estimate.host_peak_bytes)]]
    : [["Memory, peak", bytes(estimate.host_peak_bytes)]];
  const exports = Object.entries(estimate.export_bytes).map(([name, size]) => [words(name), bytes(size)]);
  const several = Object.entries(estimate.sizes);
  const work = Object.values(estimate.flops).reduce((sum, one) => sum + one, 0);
  box.replaceChildren(
    ...(several.length ? sizes(estimate, several) : [
      h("p", { class: "now" }, bytes(estimate.bytes_after)),
      h("p", { class: "hint" }, `instead of ${bytes(estimate.bytes_before)} (${change(estimate.bytes_before, estimate.bytes_after)})`),
    ]),
    notice(estimate.warnings),
    list([
      ...(several.length ? [] : [
        ["Sparsity", `${percent(estimate.sparsity_reached, 1)}, ${percent(estimate.sparsity_requested, 1)} asked for`],
        ["Parameters", `${count(estimate.parameters_before)} → ${count(estimate.parameters_after)}`],
        ...exports,
        ...predicted(estimate.predicted_speed),
      ]),
      ...memory,
      ["Precision", Object.entries(estimate.precision).map(([device, one]) => `${one} (${device})`).join(" or ")],
      ["Workspace", bytes(estimate.workspace_bytes)],
      ["Weights read", bytes(estimate.bytes_read)],
      ["To device, back", ["to_device_bytes", "to_host_bytes"].map((way) => bytes(moved(estimate.traffic, way))).join(", ")],
      ["Work", `${flops(work)}FLOP`],
    ]),
    h("h3", {}, "Memory by step"), steps(estimate.step_bytes),
    h("h3", {}, "Loads in"), h("ul", { class: "runtimes" }, runtimes.map((one) => runtime(one, buttons))));
}

/** Bytes of all phases. */
const moved = (traffic, way) => Object.values(traffic).reduce((sum, phase) => sum + phase[way], 0);

/** Of a job of several sizes: what each comes to. */
function sizes(estimate, several) {
  const row = ([name, one]) => h("tr", {}, h("th", { scope: "row" }, name),
    h("td", { class: "num" }, bytes(one.bytes_after)),
    h("td", { class: "num" }, count(one.parameters_after)));
  return [
    h("p", { class: "hint" }, `instead of ${bytes(estimate.bytes_before)} with ${count(estimate.parameters_before)} parameters`),
    h("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": "Sizes" }, h("table", {},
      h("thead", {}, h("tr", {}, h("th", { scope: "col" }, "Size"), ["Checkpoint", "Parameters"].map((text) => h("th", { scope: "col", class: "num" }, text)))),
      h("tbody", {}, several.map(row)))),
  ];
}

/** How fast the result is by a device's table, in rows of a list. */
export function predicted(speed) {
  if (!speed) return [];
  const passes = [speed.dense_seconds, speed.pruned_seconds].map((seconds) => `${number(1000 * seconds, 3)} ms`);
  return [
    [`Predicted ${speed.of}`, `× ${number(speed.predicted, 3)}, ${passes.join(" → ")}`],
    ["On", `${speed.device}, ${speed.dtype}, threads: ${count(speed.threads)}`],
  ];
}

const notice = (warnings) => (warnings.length ? h("div", { class: "notice note" }, h("ul", {}, warnings.map((text) => h("li", {}, text)))) : "");

const list = (rows) => h("dl", {}, rows.map(([name, value]) => [h("dt", {}, name), h("dd", {}, value)]));

function steps(sizes) {
  const largest = Math.max(1, ...Object.values(sizes));
  const rows = Object.entries(sizes).sort(([, a], [, b]) => b - a);
  return h("ul", { class: "bars" }, rows.map(([name, size]) =>
    h("li", {}, h("span", {}, words(name)), h("span", { class: "num" }, bytes(size)),
      h("meter", { min: "0", max: String(largest), value: String(size), "aria-hidden": "true" }))));
}

function runtime({ runtime: name, loads, tried, folder, note, reason, mends }, buttons) {
  const where = folder && folder !== "." ? `from ${folder}/` : "";
  const text = loads ? [where, note === "as it is" ? "" : note].filter(Boolean).join(", ") : reason;
  return h("li", {},
    h("span", { class: `pill ${tried ? "good" : ""}` }, !loads ? "does not load" : tried ? "loads" : "not tried"), " ", name,
    text ? h("p", { class: "hint" }, text) : null, buttons(mends));
}
