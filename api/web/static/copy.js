// Text to take along: a block, and a button that copies it.

import { h } from "./dom.js";

/** A button that copies the text of `node`, and says so. `name` tells those who cannot see it what it copies. */
export function copyButton(node, name) {
  const said = h("span", { class: "hint", role: "status" });
  const button = h("button", { type: "button", "aria-label": `Copy: ${name}` }, "Copy");
  button.addEventListener("click", async () => {
    try {
      await navigator.clipboard.writeText(node.textContent);
      said.textContent = "Copied.";
    } catch {
      // Pages without https may not copy: the reader can, once the text is selected.
      getSelection().selectAllChildren(node);
      said.textContent = "Selected: copy it with the keyboard.";
    }
  });
  return { nodes: [button, said], clear: () => { said.textContent = ""; } };
}

/** A program or command under a heading, with a button that copies it. */
export function copyBlock(name, note, text) {
  const block = h("pre", { class: "log", tabindex: "0", "aria-label": name }, text);
  return h("div", { class: "block" }, h("div", { class: "row" }, h("h3", {}, name), copyButton(block, name).nodes), note ? h("p", { class: "hint" }, note) : null, block);
}
