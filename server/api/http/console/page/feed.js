// Reads /metrics every two seconds while a page shows it, and keeps five minutes of what is drawn.

import { useEffect } from "./vendor/hooks.js";
import * as api from "./api.js";
import { gauge, growth, histogram, histogramGrowth, parse, quantile, total } from "./metrics.js";
import { createStore, useStore } from "./store.js";

export const ALL = "all adapters";
const EVERY_MS = 2000;
const KEPT_S = 300;
const SMOOTHED_S = 10;

const feed = createStore({ readings: [], error: null });
let numWatching = 0;
let timer = null;

export function useFeed(isAllowed) {
  const value = useStore(feed);
  useEffect(() => {
    if (!isAllowed) return undefined;
    numWatching += 1;
    if (numWatching === 1) read();
    return () => {
      numWatching -= 1;
      if (numWatching === 0) clearTimeout(timer);
    };
  }, [isAllowed]);
  return value;
}

export function forgetFeed() {
  feed.set({ readings: [], error: null });
}

async function read() {
  clearTimeout(timer);
  if (!document.hidden) {
    try {
      const reading = readingOf(parse(await api.text("/metrics")), performance.now() / 1000, Date.now() / 1000);
      const { readings } = feed.get();
      const kept = readings.filter((old) => reading.monotonicS - old.monotonicS <= KEPT_S);
      feed.set({ readings: [...kept, reading], error: null });
    } catch (error) {
      feed.set({ ...feed.get(), error });
    }
  }
  if (numWatching > 0) timer = setTimeout(read, EVERY_MS);
}

// Keeps of all samples what is shown: a hundred adapters' figures are a hundred times these.
export function readingOf(samples, monotonicS, timeS) {
  const labels = new Set((samples.get("medley_requests_total") ?? []).map((sample) => sample.labels.adapters));
  const figures = new Map([[ALL, figuresOf(samples, () => true)]]);
  for (const label of labels) figures.set(label, figuresOf(samples, (found) => found.adapters === label));
  return {
    monotonicS,
    timeS,
    figures,
    numWaiting: gauge(samples, "medley_requests_waiting"),
    numRunning: gauge(samples, "medley_requests_running"),
  };
}

function figuresOf(samples, matches) {
  const isFailure = (labels) => matches(labels) && labels.code !== "OK" && labels.code !== "CANCELLED";
  return {
    ended: total(samples, "medley_requests_total", matches),
    failed: total(samples, "medley_requests_total", isFailure),
    tokens: total(samples, "medley_generated_tokens_total", matches),
    ttft: histogram(samples, "medley_request_ttft_seconds", matches),
    e2e: histogram(samples, "medley_request_e2e_seconds", matches),
  };
}

const NOTHING = { ended: 0, failed: 0, tokens: 0, ttft: { bounds: [], counts: [] }, e2e: { bounds: [], counts: [] } };

// What happened between two readings, of one label: rates a second, the share that failed, quantiles in seconds.
export function between(before, after, label = ALL) {
  const seconds = after.monotonicS - before.monotonicS;
  const [old, now] = [before.figures.get(label) ?? NOTHING, after.figures.get(label) ?? NOTHING];
  const ended = growth(old.ended, now.ended);
  const ttft = histogramGrowth(old.ttft, now.ttft);
  const e2e = histogramGrowth(old.e2e, now.e2e);
  return {
    ended,
    requestRate: ended / seconds,
    failedRate: growth(old.failed, now.failed) / seconds,
    failedShare: ended ? growth(old.failed, now.failed) / ended : null,
    tokenRate: growth(old.tokens, now.tokens) / seconds,
    ttft: [0.5, 0.95].map((q) => quantile(q, ttft)),
    e2e: [0.5, 0.95, 0.99].map((q) => quantile(q, e2e)),
  };
}

// Returns, for each reading but the first, what happened in the ten seconds before it.
export function course(readings, label) {
  const points = [];
  let start = 0;
  for (let end = 1; end < readings.length; end += 1) {
    while (start < end - 1 && readings[end].monotonicS - readings[start].monotonicS > SMOOTHED_S) start += 1;
    points.push({ reading: readings[end], ...between(readings[start], readings[end], label) });
  }
  return points;
}
