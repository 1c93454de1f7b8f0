// SVG plots. Widths are in user units; the picture scales with the page.

import { h, s } from "./dom.js";
import { number } from "./format.js";

const WIDTH = 720;

/**
 * A bar for each layer, on a rail as long as the dense layer where `of` is given.
 * Items: `{ value, of, note, tone, absent }`, all optional; without a value there is no bar (yet), and `absent` says why.
 */
export function barsByLayer(items, { name, format, tone = "accent" }) {
  const height = 150;
  const left = 56;
  const values = items.map((item) => item.value).filter((value) => value !== undefined);
  const most = Math.max(...values, ...items.map((item) => item.of ?? 0)) || 1;
  const step = (WIDTH - left) / items.length;
  const wide = Math.max(1, Math.min(36, step * 0.72));
  const y = (value) => (height * value) / most;
  const bars = items.map((item, layer) => {
    const x = left + layer * step + (step - wide) / 2;
    const text = item.value === undefined ? item.absent ?? "not known yet" : `${format(item.value)}${item.of === undefined ? "" : ` of ${format(item.of)}`}${item.note ?? ""}`;
    const upTo = (value, shade) => (value === undefined ? null : s("rect", { class: shade, x, width: wide, y: height - y(value), height: y(value), rx: 2 }));
    return s("g", {}, s("title", {}, `Layer ${layer}: ${text}`), upTo(item.of, "rail"), upTo(item.value, item.tone ?? tone),
      s("rect", { class: "hit", x: left + layer * step, width: step, y: 0, height }));
  });
  const every = Math.ceil(items.length / 12);
  const labels = items.map((_, layer) => (layer % every ? null : s("text", { x: left + (layer + 0.5) * step, y: height + 18, "text-anchor": "middle" }, String(layer))));
  const lines = [0, 0.5, 1].map((share) => [
    s("line", { class: "grid-line", x1: left, x2: WIDTH, y1: height * (1 - share), y2: height * (1 - share) }),
    s("text", { x: left - 8, y: height * (1 - share) + 4, "text-anchor": "end" }, format(share * most)),
  ]);
  const whose = values.length < items.length ? `${values.length} of ${items.length}` : `each of ${items.length}`;
  return s("svg", { viewBox: `0 -8 ${WIDTH} ${height + 34}`, role: "img", "aria-label": `${name} of ${whose} layers; from ${format(Math.min(...values))} to ${format(Math.max(...values))}` }, lines, bars, labels);
}

/** A dot for each layer on a logarithmic axis: values that span orders of magnitude. Those unknown or not above 0 have none. */
export function dotsByLayer(values, { name, format, tone = "accent" }) {
  const [height, left] = [150, 56];
  const drawn = values.filter((value) => value > 0 && Number.isFinite(value));
  const [least, most] = [Math.min(...drawn), Math.max(...drawn)];
  const low = Math.floor(Math.log10(least) + 1e-9);
  const high = Math.max(low + 1, Math.ceil(Math.log10(most) - 1e-9));
  const step = (WIDTH - left) / values.length;
  const y = (value) => height * (1 - (Math.log10(value) - low) / (high - low));
  const x = (layer) => left + (layer + 0.5) * step;
  const every = Math.ceil(values.length / 12);
  const apart = Math.ceil((high - low) / 5);
  const powers = Array.from({ length: Math.floor((high - low) / apart) + 1 }, (_, place) => 10 ** (low + place * apart));
  const known = values.filter((value) => value !== undefined && value !== null);
  const whose = known.length < values.length ? `${known.length} of ${values.length}` : `each of ${values.length}`;
  return s("svg", { viewBox: `0 -8 ${WIDTH} ${height + 34}`, role: "img", "aria-label": `${name} of ${whose} layers; from ${format(Math.min(...known))} to ${format(Math.max(...known))}` },
    powers.map((power) => [
      s("line", { class: "grid-line", x1: left, x2: WIDTH, y1: y(power), y2: y(power) }),
      s("text", { x: left - 8, y: y(power) + 4, "text-anchor": "end" }, format(power)),
    ]),
    values.map((value, layer) => s("g", {}, s("title", {}, `Layer ${layer}: ${value === undefined || value === null ? "not known yet" : format(value)}`),
      drawn.includes(value) ? s("circle", { class: tone, cx: x(layer), cy: y(value), r: Math.max(2, Math.min(5, step * 0.3)) }) : null,
      s("rect", { class: "hit", x: left + layer * step, width: step, y: 0, height }))),
    values.map((_, layer) => (layer % every ? null : s("text", { x: x(layer), y: height + 18, "text-anchor": "middle" }, String(layer)))));
}

/**
 * Points on two axes, those of one series joined by a line.
 * Series: `{ name, tone, points: [{ x, y, label, text }] }`.
 */
export function scatter(series, { x: xName, y: yName, formatX, formatY }) {
  const box = { left: 60, right: WIDTH - 24, top: 12, bottom: 290 };
  const all = series.flatMap((one) => one.points);
  const xAxis = axis(0, Math.max(...all.map((point) => point.x)), false);
  const yAxis = axis(Math.min(...all.map((point) => point.y)), Math.max(...all.map((point) => point.y)), true);
  const px = (x) => box.left + ((box.right - box.left) * (x - xAxis.low)) / (xAxis.high - xAxis.low);
  const py = (y) => box.bottom - ((box.bottom - box.top) * (y - yAxis.low)) / (yAxis.high - yAxis.low);
  const grid = [
    ...yAxis.ticks.map((tick) => [
      s("line", { class: "grid-line", x1: box.left, x2: box.right, y1: py(tick), y2: py(tick) }),
      s("text", { x: box.left - 8, y: py(tick) + 4, "text-anchor": "end" }, formatY(tick)),
    ]),
    ...xAxis.ticks.map((tick) => s("text", { x: px(tick), y: box.bottom + 20, "text-anchor": "middle" }, formatX(tick))),
    s("text", { x: (box.left + box.right) / 2, y: box.bottom + 42, "text-anchor": "middle", class: "name" }, xName),
  ];
  const lines = series.map(({ points, tone }) => {
    const sorted = [...points].sort((a, b) => a.x - b.x);
    return s("g", { class: tone },
      s("polyline", { class: "joined", points: sorted.map((point) => `${px(point.x)},${py(point.y)}`).join(" ") }),
      sorted.map((point) => s("g", {},
        s("title", {}, point.text),
        s("circle", { class: point.hollow ? "hollow" : "dot", cx: px(point.x), cy: py(point.y), r: 5 }),
        s("text", { class: "strong", x: px(point.x), y: py(point.y) - 11, "text-anchor": "middle" }, point.label))));
  });
  const said = all.map((point) => point.text).join("; ");
  return h("div", {}, h("p", { class: "hint" }, yName), s("svg", { viewBox: `0 0 ${WIDTH} 340`, role: "img", "aria-label": `${yName} against ${xName}: ${said}` }, grid, lines));
}

/** Round limits and some five ticks around `low` … `high`. */
function axis(low, high, padded) {
  const room = padded ? (high - low || Math.abs(high) || 1) * 0.12 : 0;
  const raw = (high + room - (low - room)) / 5 || 0.2;
  const unit = 10 ** Math.floor(Math.log10(raw));
  const step = unit * [1, 2, 2.5, 5, 10].find((factor) => factor * unit >= raw * 0.999);
  const from = Math.floor((low - room) / step) * step;
  const to = Math.ceil((high + room) / step) * step;
  const ticks = Array.from({ length: Math.round((to - from) / step) + 1 }, (_, place) => Number((from + place * step).toPrecision(10)));
  return { low: from, high: to, ticks };
}

/** The label of an axis of perplexities. */
export const tick = (value) => number(value, 4);
