// Numbers, sizes and times as people read them. Pure.

const whole = new Intl.NumberFormat("en");
const one = new Intl.NumberFormat("en", { minimumFractionDigits: 1, maximumFractionDigits: 1 });
const two = new Intl.NumberFormat("en", { minimumFractionDigits: 2, maximumFractionDigits: 2 });
const NOTHING = "–";

export const count = (value) => (value === null || value === undefined ? NOTHING : whole.format(Math.round(value)));

export const score = (value) => (value === null || value === undefined ? NOTHING : one.format(value));

export function rate(value) {
  if (value === null || value === undefined) return NOTHING;
  return value === 0 ? "0" : value < 10 ? two.format(value) : value < 100 ? one.format(value) : count(value);
}

export function percent(share) {
  if (share === null || share === undefined) return NOTHING;
  return `${share === 0 ? "0" : one.format(share * 100)} %`;
}

export function duration(seconds) {
  if (seconds === null || seconds === undefined) return NOTHING;
  const ms = seconds * 1000;
  if (ms === 0) return "0 ms";
  if (ms < 10) return `${one.format(ms)} ms`;
  return ms < 1000 ? `${count(ms)} ms` : `${two.format(seconds)} s`;
}

export function bytes(value) {
  if (value < 1024) return `${value} B`;
  return value < 1024 ** 2 ? `${one.format(value / 1024)} KiB` : `${one.format(value / 1024 ** 2)} MiB`;
}

export function ago(timeS, nowS = Date.now() / 1000) {
  if (!timeS) return NOTHING;
  const s = Math.max(0, nowS - timeS);
  if (s < 45) return "just now";
  if (s < 45 * 60) return `${Math.max(1, Math.round(s / 60))} min ago`;
  if (s < 22 * 3600) return `${Math.max(1, Math.round(s / 3600))} h ago`;
  if (s < 14 * 86400) return `${Math.max(1, Math.round(s / 86400))} d ago`;
  return new Date(timeS * 1000).toLocaleDateString("en", { day: "numeric", month: "short", year: "numeric" });
}

export const moment = (timeS) =>
  timeS
    ? new Date(timeS * 1000).toLocaleString("en", { dateStyle: "medium", timeStyle: "medium", hour12: false })
    : NOTHING;

const KINDS = { lora: "LoRA", ia3: "IA3", norm: "Norms", prompt: "Soft prompt", prefix: "Prefix" };
export const kind = (value) => KINDS[value] ?? (value || NOTHING);

// Soft prompts and prefixes come before the text, the others change the base's layers; a request may have one of each.
export const isPrompt = (value) => value === "prompt" || value === "prefix";
