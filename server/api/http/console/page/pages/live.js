// What the server is doing now: throughput, latency, queue; per adapter over the last minutes.

import { useMemo, useState } from "../vendor/hooks.js";
import { Chart, ChartTable } from "../chart.js";
import { ALL, between, course, useFeed } from "../feed.js";
import { useMaySeeAll } from "../session.js";
import { Empty, ErrorNote, Heading, html, Loading, Note, Select, Table } from "../view.js";
import { count, duration, percent, rate } from "../words.js";

const SHOWN_S = [60, 300];
const perSecond = (value) => (value === null ? "–" : `${rate(value)}/s`);

export function Live() {
  const mayNot = useMaySeeAll();
  const { readings, error } = useFeed(!mayNot);
  const [label, setLabel] = useState(ALL);
  const labels = readings.length ? [...readings.at(-1).figures.keys()].filter((key) => key !== ALL).sort() : [];
  return html`<${Heading} title="Live">
      <${Select} label="Adapters" hidden=${true} value=${label} options=${[ALL, ...labels].map((key) => [key, key])} onChange=${setLabel} />
    <//>
    ${mayNot && html`<${Note}>${mayNot}<//>`}
    <${ErrorNote} error=${error} />
    ${!mayNot && readings.length < 2 && !error && html`<${Loading} what="figures; they need two readings" />`}
    ${readings.length > 1 && html`<${Figures} readings=${readings} label=${label} />`}`;
}

function Figures({ readings, label }) {
  const points = useMemo(() => course(readings, label), [readings, label]);
  const now = points.at(-1);
  const times = points.map((point) => point.reading.timeS);
  const to = times.at(-1);
  const shownS = Math.min(Math.max(to - times[0], SHOWN_S[0]), SHOWN_S[1]);
  const shared = { times, from: to - shownS, to };
  const charts = [
    { title: "Requests", format: perSecond, lines: [line("ended", points, (p) => p.requestRate), line("failed", points, (p) => p.failedRate)] },
    { title: "Tokens generated", format: perSecond, lines: [line("tokens", points, (p) => p.tokenRate)] },
    { title: "Time to first token", format: duration, lines: [line("p50", points, (p) => p.ttft[0]), line("p95", points, (p) => p.ttft[1])] },
    {
      title: "End-to-end latency",
      format: duration,
      lines: [line("p50", points, (p) => p.e2e[0]), line("p95", points, (p) => p.e2e[1]), line("p99", points, (p) => p.e2e[2])],
    },
    {
      title: "In the engine, all adapters",
      format: count,
      isWhole: true,
      lines: [line("running", points, (p) => p.reading.numRunning), line("waiting", points, (p) => p.reading.numWaiting)],
    },
  ];
  return html`<div class="tiles">
      <${Tile} title="Requests" value=${perSecond(now.requestRate)} />
      <${Tile} title="Tokens" value=${perSecond(now.tokenRate)} />
      <${Tile} title="First token, p95" value=${duration(now.ttft[1])} />
      <${Tile} title="End to end, p95" value=${duration(now.e2e[1])} />
      <${Tile} title="Failed" value=${percent(now.failedShare)} tone=${now.failedShare ? "bad" : ""} />
      <${Tile} title="Running / waiting" value=${`${count(now.reading.numRunning)} / ${count(now.reading.numWaiting)}`} />
    </div>
    <p class="fine">Over the ten seconds before each point, read from <code>/metrics</code> every two. Quantiles are estimated within histogram buckets.</p>
    <div class="charts">
      ${charts.map((chart) => html`<section class="card" key=${chart.title}><${Chart} ...${chart} ...${shared} height=${170} /><${ChartTable} ...${chart} times=${times} /></section>`)}
    </div>
    <${ByAdapter} readings=${readings} />`;
}

const line = (name, points, valueOf) => ({ name, values: points.map(valueOf) });

function Tile({ title, value, tone = "" }) {
  return html`<div class=${`tile ${tone}`}><span class="tile-title">${title}</span><span class="tile-value">${value}</span></div>`;
}

function ByAdapter({ readings }) {
  const [first, last] = [readings[0], readings.at(-1)];
  const minutes = (last.monotonicS - first.monotonicS) / 60;
  const rows = [...last.figures.keys()]
    .filter((key) => key !== ALL)
    .map((key) => ({ key, total: last.figures.get(key).ended, ...between(first, last, key) }))
    .sort((a, b) => b.ended - a.ended || b.total - a.total || a.key.localeCompare(b.key));
  const columns = [
    { title: "Adapters", class: "main", cell: (row) => row.key },
    { title: "Requests", class: "number", cell: (row) => perSecond(row.requestRate) },
    { title: "Tokens", class: "number", cell: (row) => perSecond(row.tokenRate) },
    { title: "Failed", class: "number", cell: (row) => percent(row.failedShare) },
    { title: "First token, p95", class: "number", cell: (row) => duration(row.ttft[1]) },
    { title: "End to end, p50", class: "number", cell: (row) => duration(row.e2e[0]) },
    { title: "End to end, p95", class: "number", cell: (row) => duration(row.e2e[1]) },
    { title: "Since the start", class: "number", cell: (row) => count(row.total) },
  ];
  return html`<section class="card flush" aria-labelledby="by-adapter">
    <div class="card-head"><h2 id="by-adapter">By adapter, last ${minutes < 1 ? "minute" : `${Math.round(minutes)} min`}</h2></div>
    ${rows.length
      ? html`<${Table} caption="By adapter" columns=${columns} rows=${rows} keyOf=${(row) => row.key} />`
      : html`<${Empty} title="No requests yet">Send one from the <a href="#/playground">playground</a>.<//>`}
  </section>`;
}
