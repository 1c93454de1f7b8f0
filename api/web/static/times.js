// How long a job takes and when it starts, in sentences, from the answers of `validate` and of a job.

import { h } from "./dom.js";
import { number, span } from "./format.js";

/** Of a valid job: a line for each class of workers, and when it would start. */
export function timeLines({ times = [], starts_in: start }) {
  if (!times.length) return [];
  return [
    ...times.map((one) => h("p", {}, `${sentence(one)}${cost(one.cost)}`)),
    h("p", { class: "hint" }, `With one worker, on a machine that does nothing else.${start ? ` ${starts(start)}` : ""}`),
  ];
}

const sentence = ({ worker_class: name, least_seconds: least, most_seconds: most }) => `About ${span(least, most)} on ${name}`;

function cost(found) {
  if (!found) return "";
  return `, ${number(found.least, 2)} to ${number(found.most, 2)} ${found.currency}`.trimEnd();
}

/** When a job starts: `Starts in about 2 to 5 minutes.` */
export function starts({ least_seconds: least, most_seconds: most }) {
  return most < 10 ? "Starts at once." : `Starts in about ${span(least, most)}.`;
}

/** What was predicted of a job, in rows of a list. */
export const predictedRows = (predicted = {}) =>
  Object.entries(predicted).map(([name, one]) => [`Predicted on ${name}`, span(one.least_seconds, one.most_seconds)]);
