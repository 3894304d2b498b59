// Lines over time, with bands around them where an interval is known, and the same figures as a table for who cannot see them.

import { useEffect, useLayoutEffect, useRef, useState } from "./vendor/hooks.js";
import uPlot from "./vendor/uplot.js";
import { html } from "./view.js";

// Lines differ by dash as well as by colour.
const DASHES = [[], [6, 4], [2, 3], [10, 4, 2, 4], [12, 5], [4, 2]];
const WHOLE_STEPS = [1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10000];
export const MAX_NUM_LINES = DASHES.length;

const color = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
const lineColor = (index) => color(`--line-${(index % MAX_NUM_LINES) + 1}`);

// `lines`: [{ name, values, low?, high? }], all as long as `times`; null where there is nothing. `format` words a value.
export function Chart({ title, times, lines, format, isWhole = false, height = 200, from = null, to = null, points = false }) {
  const frame = useRef(null);
  const plot = useRef(null);
  const [index, setIndex] = useState(null);
  const [theme, setTheme] = useState(0);
  const shape = lines.map((line) => `${line.name}${line.low ? "~" : ""}`).join("|");

  useEffect(() => {
    const redraw = () => setTheme((before) => before + 1);
    window.addEventListener("medley-theme", redraw);
    return () => window.removeEventListener("medley-theme", redraw);
  }, []);

  useLayoutEffect(() => {
    const width = () => Math.max(frame.current.clientWidth, 120);
    const range = { from, to };
    const made = new uPlot(optionsOf({ lines, format, isWhole, width: width(), height, range, points, setIndex }), dataOf(times, lines), frame.current);
    plot.current = { made, range };
    const observer = new ResizeObserver(() => made.setSize({ width: width(), height }));
    observer.observe(frame.current);
    return () => {
      observer.disconnect();
      made.destroy();
      plot.current = null;
    };
  }, [shape, theme, height, points]);

  useLayoutEffect(() => {
    Object.assign(plot.current.range, { from, to });
    plot.current.made.setData(dataOf(times, lines));
  }, [times, lines, from, to]);

  const shown = index !== null && index < times.length ? index : null;
  const at = (line) => (shown === null ? line.values.findLast((value) => value !== null) : line.values[shown]);
  return html`<figure class="chart">
    <figcaption>
      <span class="chart-title">${title}</span>
      <span class="chart-time">${shown === null ? "" : timeWords(times[shown])}</span>
      <ul class="legend">
        ${lines.map(
          (line, i) => html`<li key=${line.name}>
            <svg width="18" height="8" aria-hidden="true">
              <line x1="0" y1="4" x2="18" y2="4" class=${`stroke-${(i % MAX_NUM_LINES) + 1}`} stroke-dasharray=${DASHES[i % MAX_NUM_LINES].join(" ")} />
            </svg>
            <span>${line.name}</span> <b>${format(at(line) ?? null)}</b>
          </li>`,
        )}
      </ul>
    </figcaption>
    <div class="plot" ref=${frame} role="img" aria-label=${`${title}: ${lines.map((line) => `${line.name} ${format(at(line) ?? null)}`).join(", ")}`}></div>
  </figure>`;
}

// The last rows of what a chart shows, oldest first.
export function ChartTable({ title, times, lines, format }) {
  const rows = times.map((time, i) => [time, i]);
  return html`<details class="chart-table">
    <summary>${title} as a table</summary>
    <div class="table-frame" tabindex="0" role="region" aria-label=${title}>
      <table>
        <thead>
          <tr>
            <th scope="col">Time</th>
            ${lines.map((line) => html`<th scope="col" class="number" key=${line.name}>${line.name}</th>`)}
          </tr>
        </thead>
        <tbody>
          ${rows.map(
            ([time, i]) => html`<tr key=${time}>
              <th scope="row">${timeWords(time)}</th>
              ${lines.map(
                (line) => html`<td class="number" key=${line.name}>
                  ${format(line.values[i])}${line.low && line.low[i] !== null && ` (${format(line.low[i])} to ${format(line.high[i])})`}
                </td>`,
              )}
            </tr>`,
          )}
        </tbody>
      </table>
    </div>
  </details>`;
}

function timeWords(timeS) {
  const time = new Date(timeS * 1000);
  const isToday = time.toDateString() === new Date().toDateString();
  return time.toLocaleString("en", { ...(isToday ? {} : { day: "numeric", month: "short" }), hour: "2-digit", minute: "2-digit", second: isToday ? "2-digit" : undefined, hour12: false });
}

function dataOf(times, lines) {
  return [times, ...lines.flatMap((line) => (line.low ? [line.values, line.low, line.high] : [line.values]))];
}

function optionsOf({ lines, format, isWhole, width, height, range, points, setIndex }) {
  const series = [{}];
  const bands = [];
  const whiskers = [];
  lines.forEach((line, i) => {
    const stroke = lineColor(i);
    series.push({ stroke, width: 2, dash: DASHES[i % MAX_NUM_LINES], points: { show: points, size: 6, fill: stroke }, spanGaps: false });
    if (!line.low) return;
    const bound = { stroke: "transparent", width: 0, points: { show: false } };
    series.push(bound, bound);
    bands.push({ series: [series.length - 1, series.length - 2], fill: `${stroke}26` });
    whiskers.push({ low: series.length - 2, high: series.length - 1, stroke });
  });
  const grid = { stroke: color("--border"), width: 1 };
  const axis = { stroke: color("--muted"), grid, ticks: { show: false }, font: "12px system-ui, sans-serif" };
  const inRange = (plot, low, high) => [range.from ?? low, range.to ?? high];
  const fromZero = (plot, low, high) => (high === null || high === undefined ? [0, 1] : [0, high > 0 ? high * 1.1 : 1]);
  return {
    width,
    height,
    series,
    bands,
    legend: { show: false },
    cursor: { y: false, points: { size: 6 }, drag: { x: false, y: false } },
    scales: { x: { range: inRange }, y: { range: fromZero } },
    axes: [
      { ...axis, size: 26, gap: 6, values: axisTimes },
      { ...axis, size: 60, ...(isWhole ? { incrs: WHOLE_STEPS } : {}), values: (plot, ticks) => ticks.map((tick) => format(tick)) },
    ],
    hooks: { setCursor: [(plot) => setIndex(plot.cursor.idx ?? null)], draw: [(plot) => drawWhiskers(plot, whiskers)] },
  };
}

// A band needs two points side by side: the interval of one that stands alone is a line through it.
function drawWhiskers(plot, whiskers) {
  const { ctx, data } = plot;
  ctx.save();
  ctx.lineWidth = 2 * devicePixelRatio;
  for (const { low, high, stroke } of whiskers) {
    ctx.strokeStyle = stroke;
    data[0].forEach((time, i) => {
      const stands = (at) => (data[low][at] ?? null) !== null;
      if (!stands(i) || stands(i - 1) || stands(i + 1)) return;
      const x = plot.valToPos(time, "x", true);
      ctx.beginPath();
      ctx.moveTo(x, plot.valToPos(data[low][i], "y", true));
      ctx.lineTo(x, plot.valToPos(data[high][i], "y", true));
      ctx.stroke();
    });
  }
  ctx.restore();
}

function axisTimes(plot, ticks, axisIndex, space, stepS) {
  return ticks.map((tick) => {
    const time = new Date(tick * 1000);
    if (stepS >= 86400) return time.toLocaleDateString("en", { day: "numeric", month: "short" });
    return time.toLocaleTimeString("en", { hour: "2-digit", minute: "2-digit", second: stepS < 60 ? "2-digit" : undefined, hour12: false });
  });
}
