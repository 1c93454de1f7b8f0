// The API key of this tab. It is never put into a URL, and is gone when the tab is closed.
//
// If its user has asked for that, open tabs hand it on to new ones, through a channel that only pages of this address
// in this browser can hear. Nothing is stored for it: with the last of these tabs the key is gone.

const NAME = "strucprune.key";
const SHARED = "strucprune.key.shared";
// An open tab answers at once, also in the background.
const PATIENCE_MILLISECONDS = 250;

const channel = new BroadcastChannel(NAME);
let wanted = false;
let arrived = () => {};

export const getKey = () => sessionStorage.getItem(NAME);
const isShared = () => sessionStorage.getItem(SHARED) !== null;

/** Keep a key in this tab; `shared`: and hand it to new tabs. */
export function setKey(key, shared = false) {
  wanted = false;
  sessionStorage.setItem(NAME, key);
  if (shared) sessionStorage.setItem(SHARED, "yes");
  else sessionStorage.removeItem(SHARED);
}

/** Forget the key in this tab, and in all tabs that share it. */
export function forgetKey() {
  const key = getKey();
  const shared = isShared();
  drop();
  if (shared) channel.postMessage({ forget: key });
}

/** Ask open tabs for a key if this one has none. Resolves when one has come, or after a moment without. */
export function askForKey() {
  if (getKey()) return Promise.resolve();
  wanted = true;
  channel.postMessage({ ask: true });
  return new Promise((resolve) => {
    arrived = resolve;
    setTimeout(resolve, PATIENCE_MILLISECONDS);
  });
}

/** `changed()` is called when another tab has given or withdrawn the key. */
export function watchKey(changed) {
  channel.addEventListener("message", ({ data }) => {
    if (data.ask && isShared()) channel.postMessage({ key: getKey() });
    if (data.key && wanted) {
      setKey(data.key, true);
      arrived();
      changed();
    }
    if (data.forget && isShared() && data.forget === getKey()) {
      drop();
      changed();
    }
  });
}

function drop() {
  sessionStorage.removeItem(NAME);
  sessionStorage.removeItem(SHARED);
}
