// Numbers and times for people, as in the report.

export const ABSENT = "–";

/** Bytes in decimal units: `269 MB`. */
export const bytes = (value) => scaled(value, ["B", "kB", "MB", "GB", "TB", "PB"]);
/** A count: `46,080`, then `134 M`. */
export const count = (value) =>
  isNumber(value) && Math.abs(value) < 1e5
    ? Math.round(value).toLocaleString("en")
    : scaled(value, ["", "K", "M", "B", "T"]);
/** Operations: `2.41 G`. */
export const flops = (value) => scaled(value, ["", "K", "M", "G", "T", "P", "E"]);
export const percent = (fraction, digits = 0) =>
  isNumber(fraction) ? `${(100 * fraction).toFixed(digits)}%` : ABSENT;
export const number = (value, digits = 4) =>
  isNumber(value) ? Number(value.toPrecision(digits)).toLocaleString("en", { maximumSignificantDigits: digits }) : ABSENT;

/** A relative change with its sign: `−17.8%`. */
export function change(before, after) {
  if (!before || !isNumber(after)) return ABSENT;
  const share = after / before - 1;
  return `${share < 0 ? "−" : "+"}${percent(Math.abs(share), 1)}`;
}

/** Seconds: `12.3 s`, `4 min 05 s`, `1 h 12 min`. */
export function duration(seconds) {
  if (!isNumber(seconds)) return ABSENT;
  if (seconds < 59.95) return `${seconds < 10 ? seconds.toFixed(1) : Math.round(seconds)} s`;
  const minutes = Math.floor(Math.round(seconds) / 60);
  if (minutes < 60) return `${minutes} min ${String(Math.round(seconds) % 60).padStart(2, "0")} s`;
  return `${Math.floor(minutes / 60)} h ${String(minutes % 60).padStart(2, "0")} min`;
}

/** A range of time for people, coarser the longer it is: `4 to 7 minutes`, `up to 2 hours`. */
export function span(least, most) {
  const [unit, name] = most < 90 ? [1, "second"] : most < 5400 ? [60, "minute"] : most < 172800 ? [3600, "hour"] : [86400, "day"];
  const [low, high] = [Math.floor(least / unit), Math.max(1, Math.ceil(most / unit))];
  const end = high === 1 ? name : `${name}s`;
  if (low === high) return `${high} ${end}`;
  return low === 0 ? `up to ${high} ${end}` : `${low} to ${high} ${end}`;
}

/** How long ago: `just now`, `5 min ago`, then the date. */
export function ago(iso) {
  const seconds = (Date.now() - Date.parse(iso)) / 1000;
  if (seconds < 60) return "just now";
  if (seconds < 3600) return `${Math.floor(seconds / 60)} min ago`;
  if (seconds < 86400) return `${Math.floor(seconds / 3600)} h ago`;
  return moment(iso);
}

export const moment = (iso) =>
  iso ? new Date(iso).toLocaleString(undefined, { dateStyle: "medium", timeStyle: "short" }) : ABSENT;
export const clock = (iso) => new Date(iso).toLocaleTimeString(undefined, { hour12: false });

/** The last part of a URI: `s3://work/models/smollm2` is `smollm2`, without the commit of a hub. */
export const leaf = (uri) =>
  uri.replace(/\/+$/, "").split("/").pop().replace(/@[0-9a-f]{40}$/, "");
/** `kv_groups` is `kv groups`. */
export const words = (name) => name.replaceAll("_", " ");

function isNumber(value) {
  return typeof value === "number" && Number.isFinite(value);
}

function scaled(value, units) {
  if (!isNumber(value)) return ABSENT;
  let step = 0;
  while (step + 1 < units.length && Math.abs(value) >= 999.5) {
    value /= 1000;
    step += 1;
  }
  const text = step ? Number(value.toPrecision(3)).toString() : String(Math.round(value));
  return units[step] ? `${text} ${units[step]}` : text;
}

// Control and format characters, private ones, surrogates, separators of lines and paragraphs.
const UNSEEN = /(?![\n\t])[\p{Cc}\p{Cf}\p{Co}\p{Cs}\p{Zl}\p{Zp}]/gu;

/** A text of a model whose unseen characters are written as escapes, as \u{1b}. */
export function visible(text) {
  return text.replace(UNSEEN, (character) => `\\u{${character.codePointAt(0).toString(16)}}`);
}
