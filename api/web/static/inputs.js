// Form controls for the kinds of fields. Each can be read, filled, and can show an error.

import { freshId, h } from "./dom.js";
import { words } from "./format.js";
import { pathOf } from "./inherited.js";

/** A control; the defaults of the service are its placeholders. `read()` gives the JSON value, undefined if left empty; `fail(text)` shows an error. */
export function control(plain, defaults = {}) {
  const field = { placeholder: shownDefault(plain, defaults), ...plain };
  const id = freshId("field");
  const hintId = `${id}-hint`;
  const error = h("p", { class: "field-error", id: `${id}-error` });
  const mends = h("div", {});
  const described = { "aria-describedby": `${field.hint ? `${hintId} ` : ""}${id}-error` };
  const made = KINDS[field.kind](field, id, described);
  const hint = field.hint ? h("p", { class: "hint", id: hintId }, field.hint) : null;
  const node = made.group
    ? h("fieldset", { class: "field", ...described }, h("legend", {}, field.label), made.node, hint, error, mends)
    : h("div", { class: `field ${field.kind} ${field.wide ? "wide" : ""}` }, h("label", { for: id }, field.label), made.node, hint, error, mends);
  node.dataset.pointer = field.pointer;
  made.fill(field.initial);
  return {
    field,
    node,
    read: made.read,
    fill: made.fill,
    /** A value of the field as the form shows it. */
    show: (value) => (field.scale ? String(value / field.scale) : field.kind === "choice" ? words(value) : String(value)),
    focus() {
      node.closest("details")?.setAttribute("open", "");
      made.focus.focus();
    },
    get failed() { return error.textContent !== ""; },
    /** Show an error with buttons that mend it, or none. */
    fail(text, buttons = null) {
      error.textContent = text ?? "";
      mends.replaceChildren(...(buttons ? [buttons] : []));
      if (text) made.focus.setAttribute("aria-invalid", "true");
      else made.focus.removeAttribute("aria-invalid");
    },
  };
}

function shownDefault({ kind, pointer, scale = 1 }, defaults) {
  const value = defaults[pathOf(pointer)];
  return kind === "number" && typeof value === "number" ? String(value / scale) : undefined;
}

const KINDS = {
  text(field, id, described) {
    const input = h("input", { id, type: "text", spellcheck: "false", autocapitalize: "off", autocomplete: "off", placeholder: field.placeholder, "aria-required": field.required ? "true" : null, ...described });
    return { node: input, focus: input, read: () => input.value.trim() || undefined, fill: (value) => { input.value = value ?? ""; } };
  },

  lines(field, id, described) {
    const area = h("textarea", { id, rows: "3", placeholder: field.placeholder, ...described });
    return {
      node: area,
      focus: area,
      read() {
        const lines = area.value.split("\n").filter((line) => line.trim());
        return lines.length ? lines : undefined;
      },
      fill: (value) => { area.value = (value ?? []).join("\n"); },
    };
  },

  names(field, id, described) {
    const made = KINDS.text(field, id, described);
    return {
      ...made,
      read() {
        const names = (made.read() ?? "").split(",").map((name) => name.trim()).filter(Boolean);
        return names.length ? names : undefined;
      },
      fill: (value) => made.fill((value ?? []).join(", ")),
    };
  },

  number(field, id, described) {
    const input = h("input", { id, type: "text", inputmode: "decimal", autocomplete: "off", placeholder: field.placeholder, ...described });
    const scale = field.scale ?? 1;
    return {
      node: input,
      focus: input,
      read() {
        const text = input.value.trim();
        if (!text) return undefined;
        const value = Number(text);
        // Text that is no number is sent as it is: the API answers with an error for this field.
        if (!Number.isFinite(value)) return text;
        return scale === 1 ? value : Math.round(value * scale);
      },
      fill: (value) => { input.value = typeof value === "number" ? value / scale : ""; },
    };
  },

  share(field, id, described) {
    const input = h("input", { id, type: "text", inputmode: "decimal", autocomplete: "off", class: "short", ...described });
    const range = h("input", { type: "range", min: "0.05", max: "0.9", step: "0.05", "aria-label": `${field.label}, slider` });
    range.addEventListener("input", () => { input.value = range.value; });
    input.addEventListener("input", () => { range.value = input.value; });
    return {
      node: h("div", { class: "row" }, range, input),
      focus: input,
      read() {
        const value = Number(input.value);
        return input.value.trim() && Number.isFinite(value) ? value : input.value.trim() || undefined;
      },
      fill(value) {
        input.value = value ?? "";
        if (value !== undefined) range.value = value;
      },
    };
  },

  choice(field, id, described) {
    const options = field.options.map((name) => h("option", { value: name }, field.names?.[name] ?? words(name)));
    const usual = field.initial ? [] : [h("option", { value: "" }, "default")];
    const select = h("select", { id, ...described }, usual, options);
    return { node: select, focus: select, read: () => select.value || undefined, fill: (value) => { select.value = value ?? field.initial ?? ""; } };
  },

  flag(field, id, described) {
    const box = h("input", { id, type: "checkbox", ...described });
    return { node: box, focus: box, read: () => box.checked || undefined, fill: (value) => { box.checked = value === true; } };
  },

  several(field) {
    const boxes = field.options.map((name) => h("input", { type: "checkbox", value: name }));
    return {
      group: true,
      node: h("div", { class: "checks" }, boxes.map((box) => h("label", {}, box, words(box.value)))),
      focus: boxes[0],
      read: () => boxes.filter((box) => box.checked).map((box) => box.value),
      fill: (value) => boxes.forEach((box) => { box.checked = (value ?? []).includes(box.value); }),
    };
  },

  shares(field, id, described) {
    const made = KINDS.text(field, id, described);
    return {
      ...made,
      read() {
        const parts = (made.read() ?? "").split(",").map((part) => part.trim()).filter(Boolean);
        // Text that is no number is sent as it is: the API answers with an error for this field.
        return parts.length ? parts.map((part) => (Number.isFinite(Number(part)) ? Number(part) : part)) : undefined;
      },
      fill: (value) => made.fill((value ?? []).join(", ")),
    };
  },

  labels(field, id, described) {
    const made = KINDS.text(field, id, described);
    return {
      ...made,
      read() {
        const pairs = (made.read() ?? "").split(",").map((pair) => pair.trim()).filter(Boolean);
        return pairs.length ? Object.fromEntries(pairs.map(split)) : undefined;
      },
      fill: (value) => made.fill(Object.entries(value ?? {}).map(([name, text]) => `${name}=${text}`).join(", ")),
    };
  },
};

function split(pair) {
  const [name, ...rest] = pair.split("=");
  return [name.trim(), rest.join("=").trim()];
}
