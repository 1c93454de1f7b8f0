// Buttons that mend what is wrong: each sets one field to a value that cures it.

import { h } from "./dom.js";
import { words } from "./format.js";

/**
 * Buttons for mends (`{field, value}`, null leaves the field out), or null. `find(pointer)` gives the control of a
 * field that can be changed; `apply(pointer, value)` is called with the choice.
 */
export function mendButtons(mends = [], { find, apply }) {
  const known = mends.map(({ field, value }) => ({ pointer: `/${field.replaceAll(".", "/")}`, value: value ?? undefined }))
    .filter(({ pointer }) => find(pointer));
  if (!known.length) return null;
  return h("div", { class: "mends" }, known.map(({ pointer, value }) =>
    h("button", { type: "button", class: "mend", onclick: () => apply(pointer, value) }, describe(find(pointer), value))));
}

function describe({ field: { label }, read, show }, value) {
  if (value === undefined) return `Leave out: ${label}`;
  if (Array.isArray(value)) {
    const now = read() ?? [];
    const [added, gone] = [without(value, now), without(now, value)];
    if (added.length && !gone.length) return `Add ${list(added)}`;
    if (gone.length && !added.length) return `Leave out ${list(gone)}`;
    return `Set ${label} to ${list(value)}`;
  }
  return `Set ${label} to ${show(value)}`;
}

const without = (all, some) => all.filter((one) => !some.includes(one));
const list = (names) => names.map((name) => words(String(name))).join(", ");
