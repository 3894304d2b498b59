// All adapters: what each serves, where it lies, and how much it is asked.

import { useState } from "../vendor/hooks.js";
import { aliasesOf, makeOf, newestOf, readyOf, servedOf, useAdapters, useResident } from "../adapters_data.js";
import { ALL, between, useFeed } from "../feed.js";
import { useMay, useMaySeeAll } from "../session.js";
import { Answer, Badge, Empty, Heading, html, Note, Select, Table } from "../view.js";
import { ago, count, moment, rate } from "../words.js";

const ORDERS = [
  ["name", "by name"],
  ["traffic", "by traffic"],
  ["newest", "newest first"],
];

export function Adapters() {
  const mayNotRead = useMay("read");
  const [words, setWords] = useState("");
  const [order, setOrder] = useState("name");
  const poll = useAdapters();
  return html`<${Heading} title="Adapters">
      <div class="field">
        <label class="sr-only" for="adapters-search">Find an adapter</label>
        <input id="adapters-search" type="search" placeholder="Find by name or tag" value=${words} onInput=${(event) => setWords(event.target.value)} />
      </div>
      <${Select} label="Order" hidden=${true} value=${order} options=${ORDERS} onChange=${setOrder} />
      <a class="button primary" href="#/upload">Upload a version</a>
    <//>
    ${mayNotRead
      ? html`<${Note}>${mayNotRead}<//>`
      : html`<${Answer} poll=${poll} what="adapters">${(adapters) => html`<${List} adapters=${adapters} words=${words} order=${order} />`}<//>`}`;
}

function List({ adapters, words, order }) {
  const mayNotSeeAll = useMaySeeAll();
  const resident = useResident();
  const traffic = useTraffic(!mayNotSeeAll, adapters);
  if (adapters.length === 0) {
    return html`<${Empty} title="No adapters yet">
      The server answers with its base alone. <a href="#/upload">Upload</a> a PEFT folder, or run <code>medley adapters push</code>.
    <//>`;
  }
  const found = adapters.filter((adapter) => isFound(adapter, words.trim().toLowerCase())).sort(comparing(order, traffic));
  if (found.length === 0) return html`<${Empty} title="Nothing matches">No adapter has “${words}” in its name or tags.<//>`;
  return html`<${Table}
      caption="Adapters"
      columns=${columnsOf(resident, traffic)}
      rows=${found}
      keyOf=${(adapter) => adapter.name}
    />
    ${mayNotSeeAll && html`<p class="fine">Traffic and residency are figures over all adapters. ${mayNotSeeAll}</p>`}`;
}

function columnsOf(resident, traffic) {
  return [
    { title: "Adapter", class: "main", cell: (adapter) => html`<${Name} adapter=${adapter} />` },
    { title: "Kind", cell: (adapter) => (servedOf(adapter) ? makeOf(servedOf(adapter)) : "–") },
    { title: "Serves", cell: (adapter) => html`<${Serves} adapter=${adapter} />` },
    { title: "Versions", class: "number", cell: (adapter) => count(readyOf(adapter).length) },
    { title: "On the device", cell: (adapter) => html`<${Residency} adapter=${adapter} resident=${resident} />` },
    { title: "Requests", class: "traffic", cell: (adapter) => html`<${Traffic} of=${traffic.of(adapter.name)} most=${traffic.most} />` },
    {
      title: "Newest",
      cell: (adapter) => html`<span title=${moment(newestOf(adapter)?.created_s)}>${ago(newestOf(adapter)?.created_s)}</span>`,
    },
  ];
}

function Name({ adapter }) {
  const served = servedOf(adapter) ?? newestOf(adapter);
  return html`<a class="name" href=${`#/adapters/${encodeURIComponent(adapter.name)}`}>${adapter.name}</a>
    ${served?.description && html`<p class="fine clipped">${served.description}</p>`}
    ${served?.tags.length > 0 && html`<p class="badges">${served.tags.map((tag) => html`<${Badge} key=${tag}>${tag}<//>`)}</p>`}`;
}

function Serves({ adapter }) {
  const served = servedOf(adapter);
  if (!served) return html`<${Badge} tone="bad">nothing ready<//>`;
  const others = Object.keys(adapter.aliases).filter((alias) => alias !== "stable").sort();
  const hasAlias = aliasesOf(adapter, served.version).includes("stable");
  return html`<span class="badges">
    <${Badge} tone="good" title=${hasAlias ? "A bare name means this version" : "No alias stable: a bare name means the newest ready version"}>
      ${hasAlias ? "stable" : "newest"} → ${served.version}
    <//>
    ${others.map((alias) => html`<${Badge} key=${alias} tone="info">${alias} → ${adapter.aliases[alias]}<//>`)}
  </span>`;
}

function Residency({ adapter, resident }) {
  if (!resident) return html`<span class="fine">–</span>`;
  const here = readyOf(adapter).filter((version) => resident.has(version.digest));
  if (here.length === 0) return html`<span class="dot">not loaded</span>`;
  return html`<span class="dot good">${here.map((version) => `v${version.version}`).join(", ")}</span>`;
}

function Traffic({ of, most }) {
  if (!of) return html`<span class="fine">–</span>`;
  return html`<span class="meter" title=${`${count(of.ended)} requests since the server started`}>
    <span class="meter-words">${count(of.ended)} <span class="fine">${rate(of.requestRate)}/s</span></span>
    <svg class="meter-bar" viewBox="0 0 100 4" preserveAspectRatio="none" aria-hidden="true">
      <rect class="meter-rest" width="100" height="4" rx="2" /><rect class="meter-part" width=${most ? (100 * of.ended) / most : 0} height="4" rx="2" />
    </svg>
  </span>`;
}

// Requests with an adapter, those with another beside it included.
function useTraffic(isAllowed, adapters) {
  const { readings } = useFeed(isAllowed);
  const last = readings.at(-1);
  const first = readings.findLast((reading) => last.monotonicS - reading.monotonicS >= 30) ?? readings[0];
  const of = (name) => {
    if (!last) return null;
    const labels = [...last.figures.keys()].filter((label) => label !== ALL && label.split("+").includes(name));
    const sums = labels.map((label) => [last.figures.get(label).ended, last === first ? 0 : between(first, last, label).requestRate]);
    return { ended: sums.reduce((sum, [ended]) => sum + ended, 0), requestRate: sums.reduce((sum, [, perS]) => sum + perS, 0) };
  };
  return { of, most: last ? Math.max(0, ...adapters.map((adapter) => of(adapter.name).ended)) : 0 };
}

const isFound = (adapter, words) =>
  !words || adapter.name.includes(words) || readyOf(adapter).some((version) => version.tags.some((tag) => tag.includes(words)));

function comparing(order, traffic) {
  const byName = (a, b) => a.name.localeCompare(b.name);
  if (order === "traffic") return (a, b) => (traffic.of(b.name)?.ended ?? 0) - (traffic.of(a.name)?.ended ?? 0) || byName(a, b);
  if (order === "newest") return (a, b) => (newestOf(b)?.created_s ?? 0) - (newestOf(a)?.created_s ?? 0) || byName(a, b);
  return byName;
}
