// What the pages ask about adapters, and how they put it into words.

import * as api from "./api.js";
import { useMay, useMaySeeAll } from "./session.js";
import { usePoll } from "./store.js";
import { kind } from "./words.js";

const EVERY_MS = 5000;

export function useAdapters(everyMs = EVERY_MS) {
  const mayNot = useMay("read");
  return usePoll(async (signal) => (mayNot ? [] : (await api.call("GET", "/v1/adapters", { signal })).adapters), everyMs, [mayNot]);
}

// The digests on the device, or null where the key may not know.
export function useResident() {
  const isHidden = useMaySeeAll();
  const { data } = usePoll(async (signal) => (isHidden ? null : new Set((await api.call("GET", "/v1/status", { signal })).resident)), EVERY_MS, [isHidden]);
  return data;
}

export const readyOf = (adapter) => adapter.versions.filter((version) => version.state === "ready");

export const aliasesOf = (adapter, version) => Object.keys(adapter.aliases).filter((alias) => adapter.aliases[alias] === version);

// The version a bare name means.
export function servedOf(adapter) {
  const ready = readyOf(adapter);
  return ready.find((version) => version.version === adapter.aliases.stable) ?? ready.at(-1) ?? null;
}

export const newestOf = (adapter) => adapter.versions.at(-1) ?? null;

export const adapterPath = (name) => `/v1/adapters/${api.quoted(name)}`;

// What a version is made of, in a few words.
export function makeOf(version) {
  const parts = [kind(version.kind)];
  if (version.rank) parts.push(`rank ${version.rank}`);
  if (version.num_virtual_tokens) parts.push(`${version.num_virtual_tokens} tokens`);
  return parts.join(", ");
}
