// Asks for the API key.

import { capabilities } from "./api.js";
import { h } from "./dom.js";
import { forgetKey, setKey } from "./session.js";

/** Show the form; `enter` is called once a key has been accepted. */
export function showGate(main, refusal, enter) {
  const error = h("p", { id: "key-error", class: "field-error", role: "alert" }, refusal);
  const input = h("input", {
    id: "key", type: "password", autocomplete: "off", spellcheck: "false", required: true,
    "aria-describedby": "key-hint key-error",
  });
  const share = h("input", { type: "checkbox" });
  const button = h("button", { class: "primary" }, "Continue");
  const form = h("form", { class: "card gate", novalidate: true },
    h("h1", { tabindex: "-1" }, "Make a model smaller"),
    h("p", { class: "soft" }, "Submit pruning jobs, watch them, and compare what they give."),
    h("div", { class: "field" },
      h("label", { for: "key" }, "API key"), input,
      h("p", { id: "key-hint", class: "hint" },
        "Kept in this tab, until it is closed. Whoever runs the service makes one with “strucprune keys create”."),
      error),
    h("label", { class: "check" }, share, "Hand it on to new tabs, as long as one is open"),
    h("div", { class: "actions" }, button));
  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    const key = input.value.trim();
    if (!/^[\x21-\x7e]+$/.test(key)) {
      refuse(key ? "A key has no spaces and no special characters." : "Enter your key.");
      return;
    }
    button.disabled = true;
    setKey(key);
    try {
      await capabilities();
      setKey(key, share.checked);
      enter();
    } catch (problem) {
      if (problem.status === 403) { // an operator's key, which may read no jobs
        location.hash = "#/usage";
        enter();
        return;
      }
      forgetKey();
      // A refused key has already shown this form again, with the reason.
      if (problem.status !== 401) refuse(problem.message);
    }
    button.disabled = false;
  });
  function refuse(text) {
    error.textContent = text;
    input.setAttribute("aria-invalid", "true");
    input.focus();
  }
  main.append(form);
  if (refusal) input.setAttribute("aria-invalid", "true");
  input.focus();
}
