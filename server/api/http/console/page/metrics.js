// Reads Prometheus' text format and makes rates and quantiles of what changed between two readings.
//
// Source: https://prometheus.io/docs/instrumenting/exposition_formats/ and, for quantiles between buckets' bounds,
// https://prometheus.io/docs/prometheus/latest/querying/functions/#histogram_quantile

const SAMPLE = /^([a-zA-Z_:][\w:]*)(?:\{(.*)\})? (\S+)(?: \d+)?$/;
const LABEL = /([a-zA-Z_]\w*)="((?:[^"\\]|\\.)*)"/g;
const ESCAPES = { "\\n": "\n", '\\"': '"', "\\\\": "\\" };

// Returns sample name → [{ labels, value }].
export function parse(text) {
  const samples = new Map();
  for (const line of text.split("\n")) {
    const found = line.startsWith("#") ? null : SAMPLE.exec(line);
    if (!found) continue;
    const labels = {};
    for (const [, name, value] of (found[2] ?? "").matchAll(LABEL)) labels[name] = value.replace(/\\./g, (e) => ESCAPES[e] ?? e);
    if (!samples.has(found[1])) samples.set(found[1], []);
    samples.get(found[1]).push({ labels, value: Number(found[3].replace("Inf", "Infinity")) });
  }
  return samples;
}

export const gauge = (samples, name) => samples.get(name)?.[0]?.value ?? null;

// Returns the sum of a counter over the samples that `matches` takes.
export function total(samples, name, matches = () => true) {
  let sum = 0;
  for (const sample of samples.get(name) ?? []) if (matches(sample.labels)) sum += sample.value;
  return sum;
}

// Returns a histogram over the samples that `matches` takes: upper bounds, ascending, and how many were at or below each.
export function histogram(samples, name, matches = () => true) {
  const counts = new Map();
  for (const { labels, value } of samples.get(`${name}_bucket`) ?? []) {
    const bound = Number(labels.le.replace("Inf", "Infinity"));
    if (matches(labels)) counts.set(bound, (counts.get(bound) ?? 0) + value);
  }
  const bounds = [...counts.keys()].sort((a, b) => a - b);
  return { bounds, counts: bounds.map((bound) => counts.get(bound)) };
}

// How much a counter grew; after a restart of the server, all it has.
export const growth = (before, after) => (after < before ? after : after - before);

export function histogramGrowth(before, after) {
  const isRestarted = after.counts.at(-1) < (before.counts.at(-1) ?? 0);
  const isSame = !isRestarted && before.bounds.length === after.bounds.length;
  return { bounds: after.bounds, counts: isSame ? after.counts.map((count, i) => count - before.counts[i]) : after.counts };
}

// Returns the quantile `q` of a histogram, as if each bucket's values were spread evenly over it; null without any.
export function quantile(q, { bounds, counts }) {
  const num = counts.at(-1) ?? 0;
  if (num === 0) return null;
  const rank = q * num;
  const index = counts.findIndex((count) => count >= rank);
  if (!Number.isFinite(bounds[index])) return bounds[index - 1] ?? null;
  const lower = index ? bounds[index - 1] : 0;
  const below = index ? counts[index - 1] : 0;
  const inside = counts[index] - below;
  return inside === 0 ? lower : lower + ((bounds[index] - lower) * (rank - below)) / inside;
}
