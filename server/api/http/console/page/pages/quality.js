// How good each adapter's answers are, by the references that came for them: over time with intervals, and in all.

import { useMemo, useState } from "../vendor/hooks.js";
import * as api from "../api.js";
import { Chart, ChartTable, MAX_NUM_LINES } from "../chart.js";
import { useMay } from "../session.js";
import { usePoll } from "../store.js";
import { Answer, Badge, Empty, Heading, html, Note, Select, Table } from "../view.js";
import { count } from "../words.js";

const SPANS = [
  ["60x20", "last 20 minutes"],
  ["300x24", "last 2 hours"],
  ["3600x24", "last 24 hours"],
  ["21600x28", "last 7 days"],
  ["86400x30", "last 30 days"],
];
const SPAN_WORDS = { 60: "each minute", 300: "every five minutes", 3600: "each hour", 21600: "every six hours", 86400: "each day" };
export const FIRST_METRICS = ["rougeL", "rouge1", "rouge2", "rougeLsum", "bleu_sentence", "chrf_sentence", "exact_match"];
const NAMES = { rouge1: "ROUGE-1", rouge2: "ROUGE-2", rougeL: "ROUGE-L", rougeLsum: "ROUGE-Lsum", bleu_sentence: "BLEU", chrf_sentence: "chrF" };
const PERCENT = [...FIRST_METRICS, "repetition", "copy_rate"];

export const metricName = (metric) => NAMES[metric] ?? metric.replaceAll("_", " ");

// Percent figures have one decimal; ratios, and what is not known to be percent, three.
export function metricValue(metric) {
  const digits = PERCENT.includes(metric) ? 1 : 3;
  const words = new Intl.NumberFormat("en", { minimumFractionDigits: digits, maximumFractionDigits: digits });
  return (value) => (value === null || value === undefined ? "–" : words.format(value));
}

export function Quality() {
  const mayNot = useMay("read");
  const [span, setSpan] = useState("3600x24");
  const [metric, setMetric] = useState("rougeL");
  const [windowS, numWindows] = span.split("x").map(Number);
  const ask = async (signal) =>
    mayNot ? [] : (await api.call("GET", `/v1/evaluations?window_s=${windowS}&num_windows=${numWindows}`, { signal })).evaluations;
  const poll = usePoll(ask, 10000, [span, mayNot]);
  const metrics = metricsOf(poll.data ?? []);
  const shown = metrics.includes(metric) ? metric : (metrics[0] ?? "rougeL");
  return html`<${Heading} title="Quality">
      <${Select} label="Measure" hidden=${true} value=${shown} options=${(metrics.length ? metrics : [shown]).map((key) => [key, metricName(key)])} onChange=${setMetric} />
      <${Select} label="Time" hidden=${true} value=${span} options=${SPANS} onChange=${setSpan} />
    <//>
    ${mayNot
      ? html`<${Note}>${mayNot}<//>`
      : html`<${Answer} poll=${poll} what="scores">
          ${(entries) => (entries.length ? html`<${Scores} entries=${entries} metric=${shown} windowS=${windowS} numWindows=${numWindows} />` : html`<${None} />`)}
        <//>`}`;
}

const None = () => html`<${Empty} title="Nothing has been scored yet">
  Answers are scored when references come with a request (<code>"references": ["…"]</code>) or later, to${" "}
  <code>POST /v1/references</code>. The <a href="#/playground">playground</a> takes a reference, too.
<//>`;

function metricsOf(entries) {
  const found = new Set(entries.flatMap((entry) => [...Object.keys(entry.means), ...Object.keys(entry.metrics ?? {})]));
  const rank = (metric) => (FIRST_METRICS.includes(metric) ? FIRST_METRICS.indexOf(metric) : FIRST_METRICS.length);
  return [...found].sort((a, b) => rank(a) - rank(b) || a.localeCompare(b));
}

function Scores({ entries, metric, windowS, numWindows }) {
  const [chosen, setChosen] = useState(null);
  const ranked = useMemo(() => [...entries].sort((a, b) => b.num_scored - a.num_scored || a.adapters.localeCompare(b.adapters)), [entries]);
  const labels = chosen ?? ranked.slice(0, 4).map((entry) => entry.adapters);
  const toggle = (label) => setChosen(labels.includes(label) ? labels.filter((other) => other !== label) : [...labels, label]);
  // In the order of their names, so that no line takes another's colour when one has been scored more often.
  const drawn = entries.filter((entry) => labels.includes(entry.adapters)).sort((a, b) => a.adapters.localeCompare(b.adapters));
  return html`<${Course} entries=${drawn} metric=${metric} windowS=${windowS} numWindows=${numWindows} />
    <section class="card flush" aria-labelledby="all-time">
      <div class="card-head"><h2 id="all-time">${metricName(metric)} so far</h2></div>
      <${Table} caption="Scores" columns=${columnsOf(metric, labels, toggle)} rows=${ranked} keyOf=${(entry) => entry.adapters} />
    </section>`;
}

function Course({ entries, metric, windowS, numWindows }) {
  const format = metricValue(metric);
  const course = useMemo(() => courseOf(entries, metric), [entries, metric]);
  const to = Math.max(Date.now() / 1000, course.times.at(-1) ?? 0);
  const title = `${metricName(metric)} over time`;
  if (course.times.length === 0) {
    return html`<section class="card"><${Empty} title="No scores in this time">Choose a longer one, or look at the table below.<//></section>`;
  }
  return html`<section class="card">
    <${Chart} title=${title} times=${course.times} lines=${course.lines} format=${format} height=${260} from=${to - windowS * numWindows} to=${to} points=${true} />
    <p class="fine">Mean of ${SPAN_WORDS[windowS]}; the band, or the line through a point that stands alone, is its bootstrap interval.</p>
    <${ChartTable} title=${title} times=${course.times} lines=${course.lines} format=${format} />
  </section>`;
}

// Puts the windows of several adapters on one axis: each at its middle, with nothing where there was nothing to score.
export function courseOf(entries, metric) {
  const byLabel = entries.map((entry) => ({
    name: entry.adapters,
    at: new Map((entry.windows ?? []).filter((w) => w.means[metric] !== undefined).map((w) => [(w.start_s + w.end_s) / 2, w])),
  }));
  const times = [...new Set(byLabel.flatMap(({ at }) => [...at.keys()]))].sort((a, b) => a - b);
  const lines = byLabel
    .filter(({ at }) => at.size > 0)
    .map(({ name, at }) => {
      const pick = (read) => times.map((time) => (at.has(time) ? (read(at.get(time)) ?? null) : null));
      return { name, values: pick((w) => w.means[metric]), low: pick((w) => w.low?.[metric]), high: pick((w) => w.high?.[metric]) };
    });
  return { times, lines };
}

function columnsOf(metric, labels, toggle) {
  const format = metricValue(metric);
  const figure = (entry, name) => format(entry.metrics?.[metric]?.[name]);
  const box = (entry) => html`<label class="check">
    <input
      type="checkbox"
      checked=${labels.includes(entry.adapters)}
      disabled=${!labels.includes(entry.adapters) && labels.length >= MAX_NUM_LINES}
      onChange=${() => toggle(entry.adapters)}
    />
    <span><span class="sr-only">Draw </span>${entry.adapters}</span>
  </label>`;
  return [
    { title: "Adapters", class: "main", cell: box },
    { title: "Mean", class: "number", cell: (entry) => html`<b>${format(entry.metrics?.[metric]?.mean ?? entry.means[metric])}</b>` },
    { title: "Interval", class: "number", cell: (entry) => (entry.metrics?.[metric] ? `${figure(entry, "low")} to ${figure(entry, "high")}` : "–") },
    { title: "p10 / p50 / p90", class: "number", cell: (entry) => ["p10", "p50", "p90"].map((name) => figure(entry, name)).join(" / ") },
    { title: "Scored", class: "number", cell: (entry) => count(entry.metrics?.[metric]?.count ?? entry.num_scored) },
    { title: "Answered", class: "number", cell: (entry) => count(entry.num_finished) },
    { title: "Errors", class: "number", cell: (entry) => count(entry.num_errors) },
    { title: "Drift", cell: (entry) => html`<${Drift} drift=${entry.drift ?? {}} />` },
  ];
}

function Drift({ drift }) {
  const signals = Object.entries(drift);
  if (signals.length === 0) return html`<span class="fine">–</span>`;
  const drifted = signals.filter(([, found]) => found.drifted);
  if (drifted.length === 0) return html`<span class="dot good" title=${`looked at: ${signals.map(([name]) => metricName(name)).join(", ")}`}>none</span>`;
  return html`<span class="badges">
    ${drifted.map(([name, found]) => html`<${Badge} key=${name} tone="warn" title=${`statistic ${found.statistic}, p ${found.p_value}`}>${metricName(name)}<//>`)}
  </span>`;
}
