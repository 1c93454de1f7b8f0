// Makes elements from data. Text is always a text node, so no text of a job becomes markup.

const SVG = "http://www.w3.org/2000/svg";

/** An element: attributes, `on…` listeners, then children (strings, nodes, lists, null). */
export function h(tag, attributes = {}, ...children) {
  return fill(document.createElement(tag), attributes, children);
}

/** The same for SVG. */
export function s(tag, attributes = {}, ...children) {
  return fill(document.createElementNS(SVG, tag), attributes, children);
}

function fill(node, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (value === true) node.setAttribute(name, "");
    else if (value !== false && value !== null && value !== undefined) node.setAttribute(name, value);
  }
  node.append(...children.flat(Infinity).filter((child) => child !== null && child !== undefined && child !== false));
  return node;
}

let counter = 0;
/** An id that no other element has. */
export function freshId(stem) {
  counter += 1;
  return `${stem}-${counter}`;
}

/** Announce a text to screen readers. */
export function announce(text) {
  document.getElementById("announcer").textContent = text;
}

/** A box with an error message. */
export function problemBox(error) {
  const id = error.requestId ? h("p", { class: "soft" }, `Request id: ${error.requestId}`) : null;
  return h("div", { class: "notice bad", role: "alert" }, h("p", {}, error.message), id);
}
