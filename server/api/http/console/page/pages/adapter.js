// One adapter: its versions, where its aliases point, who changed what, and the changes themselves.

import { useState } from "../vendor/hooks.js";
import * as api from "../api.js";
import { adapterPath, aliasesOf, makeOf, readyOf, servedOf, useResident } from "../adapters_data.js";
import { useMay } from "../session.js";
import { useAct, usePoll } from "../store.js";
import { Answer, Badge, Button, Confirm, Empty, Field, Heading, html, Note, say, Select, Table } from "../view.js";
import { ago, bytes, moment, score } from "../words.js";

const TONES = { ready: "good", uploading: "info", validating: "info", retired: "" };

export function Adapter({ name }) {
  const [dialog, setDialog] = useState(null);
  const resident = useResident();
  const mayNot = useMay("operate");
  const poll = usePoll((signal) => api.call("GET", adapterPath(name), { signal }), 5000, [name]);
  const audit = usePoll(async (signal) => (await api.call("GET", `${adapterPath(name)}/audit?limit=20`, { signal })).records, 15000, [name]);
  const close = (isDone) => {
    setDialog(null);
    if (isDone !== true) return;
    poll.reload();
    audit.reload();
  };
  const shown = { adapter: poll.data, resident, mayNot, open: setDialog };
  const View = dialog && DIALOGS[dialog.what];
  return html`<${Heading} title=${name} back=${{ href: "#/adapters", text: "Adapters" }}>
      <${Button} reason=${mayNot || (poll.data && Object.keys(poll.data.aliases).length ? "" : "No alias points anywhere.")} onClick=${() => setDialog({ what: "rollback" })}>
        Roll back…
      <//>
      <a class="button" href=${`#/upload/${encodeURIComponent(name)}`}>Upload a version</a>
    <//>
    ${mayNot && html`<${Note}>You can look, but not change anything: ${mayNot.charAt(0).toLowerCase()}${mayNot.slice(1)}<//>`}
    <${Answer} poll=${poll} what=${name}>${() => html`<${Aliases} ...${shown} /><${Versions} ...${shown} />`}<//>
    <section class="card" aria-labelledby="audit-title">
      <h2 id="audit-title">Changes</h2>
      <${Answer} poll=${audit} what="changes">${(records) => html`<${Audit} records=${records} />`}<//>
    </section>
    ${View && poll.data && html`<${View} adapter=${poll.data} version=${dialog.version} onClose=${close} mayNot=${mayNot} />`}`;
}

function Aliases({ adapter }) {
  const served = servedOf(adapter);
  const aliases = Object.entries(adapter.aliases).sort();
  return html`<section class="card facts" aria-label="What it serves">
    <dl>
      <div><dt>A bare name means</dt><dd>${served ? `version ${served.version}` : "nothing: no version is ready"}</dd></div>
      ${aliases.map(([alias, version]) => html`<div key=${alias}><dt>@${alias}</dt><dd>version ${version}</dd></div>`)}
      ${served && html`<div><dt>Kind</dt><dd>${makeOf(served)}</dd></div><div><dt>Task</dt><dd>${served.task || "–"}</dd></div><div><dt>Scored by</dt><dd>${served.metrics.join(", ") || "what its task has"}</dd></div><div><dt>Licence</dt><dd>${served.licence || "–"}</dd></div>`}
    </dl>
    ${served?.description && html`<p class="fine">${served.description}</p>`}
  </section>`;
}

function Versions({ adapter, resident, mayNot, open }) {
  const [withRetired, setWithRetired] = useState(false);
  const newestFirst = [...adapter.versions].reverse();
  const shown = newestFirst.filter((version) => withRetired || version.state !== "retired");
  const numRetired = newestFirst.length - newestFirst.filter((version) => version.state !== "retired").length;
  const columns = [
    { title: "Version", class: "main", cell: (version) => html`<${VersionName} adapter=${adapter} version=${version} />` },
    { title: "State", cell: (version) => html`<${Badge} tone=${TONES[version.state] ?? "bad"} title=${version.reason}>${version.state}<//>` },
    { title: "Made of", cell: (version) => html`${makeOf(version)}<span class="fine"> · ${bytes(version.size_bytes)}</span>` },
    { title: "ROUGE-L of its maker", class: "number", cell: (version) => score(version.scores.rougeL ?? null) },
    {
      title: "On the device",
      cell: (version) =>
        resident ? html`<span class=${`dot ${resident.has(version.digest) ? "good" : ""}`}>${resident.has(version.digest) ? "loaded" : "not loaded"}</span>` : "–",
    },
    { title: "Made", cell: (version) => html`<span title=${moment(version.created_s)}>${ago(version.created_s)}</span>` },
    { title: "", class: "row-actions", cell: (version) => html`<${Actions} version=${version} mayNot=${mayNot} open=${open} />` },
  ];
  return html`<section class="card flush" aria-labelledby="versions-title">
    <div class="card-head">
      <h2 id="versions-title">Versions</h2>
      ${numRetired > 0 &&
      html`<label class="check"><input type="checkbox" checked=${withRetired} onChange=${(event) => setWithRetired(event.target.checked)} /> Show ${numRetired} retired</label>`}
    </div>
    ${shown.length
      ? html`<${Table} caption=${`Versions of ${adapter.name}`} columns=${columns} rows=${shown} keyOf=${(version) => version.version} />`
      : html`<${Empty} title="Every version is retired">Upload another to serve this name again.<//>`}
  </section>`;
}

function VersionName({ adapter, version }) {
  return html`<span class="badges">
    <b>${version.version}</b>
    ${aliasesOf(adapter, version.version).map((alias) => html`<${Badge} key=${alias} tone=${alias === "stable" ? "good" : "info"}>${alias}<//>`)}
    ${version.tags.map((tag) => html`<${Badge} key=${tag}>${tag}<//>`)}
  </span>
  <p class="fine"><code title=${version.digest}>${version.digest.slice(0, 12)}</code></p>`;
}

function Actions({ version, mayNot, open }) {
  if (version.state === "retired") return html`<span class="fine">${version.reason}</span>`;
  const isReady = version.state === "ready" ? "" : "This version is not ready.";
  return html`<${Button} kind="small" reason=${mayNot || isReady} aria-label=${`Promote version ${version.version}`} onClick=${() => open({ what: "promote", version })}>
      Promote…
    <//>
    <${Button} kind="small danger" reason=${mayNot} aria-label=${`Delete version ${version.version}`} onClick=${() => open({ what: "delete", version })}>Delete…<//>`;
}

function Audit({ records }) {
  if (records.length === 0) return html`<p class="fine">Nothing has been changed yet.</p>`;
  return html`<ol class="events">
    ${records.map(
      (record) => html`<li key=${`${record.time_s}${record.action}`}>
        <time title=${moment(record.time_s)}>${ago(record.time_s)}</time>
        <span>
          <b>${record.action.replaceAll("_", " ")}</b>
          ${record.alias && html` @${record.alias}`}${record.version !== null && html` · version ${record.version}`}
          <span class="fine"> by ${record.who}${record.detail && ` · ${record.detail}`}</span>
        </span>
      </li>`,
    )}
  </ol>`;
}

function Promote({ adapter, version, onClose, mayNot }) {
  const [alias, setAlias] = useState("stable");
  const before = adapter.aliases[alias];
  const act = useAct(async () => {
    await api.call("PUT", `${adapterPath(adapter.name)}/aliases/${api.quoted(alias)}`, { json: { version: version.version } });
    say(`${adapter.name}@${alias} is version ${version.version} now.`);
    onClose(true);
  });
  return html`<${Confirm} title=${`Promote version ${version.version}`} act=${act} verb="Promote" reason=${mayNot} onClose=${onClose}>
    <${Field} label="Alias" hint="A bare name means stable. New requests follow at once; running ones end on the version they began with.">
      ${(props) => html`<input ...${props} list="aliases" value=${alias} onInput=${(event) => setAlias(event.target.value.trim())} required />`}
    <//>
    <datalist id="aliases">${Object.keys({ stable: 1, canary: 1, ...adapter.aliases }).map((known) => html`<option key=${known} value=${known} />`)}</datalist>
    <p>
      <b>${adapter.name}@${alias || "…"}</b>: ${before === undefined ? "new" : `version ${before}`} → <b>version ${version.version}</b>
      ${before === version.version && html`<span class="fine"> (it points there already)</span>`}
    </p>
  <//>`;
}

function Rollback({ adapter, onClose, mayNot }) {
  const aliases = Object.keys(adapter.aliases).sort();
  const [alias, setAlias] = useState(aliases.includes("stable") ? "stable" : aliases[0]);
  const act = useAct(async () => {
    const { aliases: now } = await api.call("POST", `${adapterPath(adapter.name)}/rollback`, { json: { alias } });
    say(`${adapter.name}@${alias} is version ${now[alias]} again.`);
    onClose(true);
  });
  return html`<${Confirm} title=${`Roll ${adapter.name} back`} act=${act} verb="Roll back" reason=${mayNot} onClose=${onClose}>
    <${Select} label="Alias" value=${alias} options=${aliases.map((known) => [known, `@${known} (now version ${adapter.aliases[known]})`])} onChange=${setAlias} />
    <p>It goes back to its latest earlier target that is still ready. A second rollback goes one further back.</p>
  <//>`;
}

function Delete({ adapter, version, onClose, mayNot }) {
  const held = aliasesOf(adapter, version.version);
  const [isForced, setIsForced] = useState(false);
  const act = useAct(async () => {
    await api.call("DELETE", `${adapterPath(adapter.name)}/versions/${version.version}${isForced ? "?force=true" : ""}`);
    say(`${adapter.name}:${version.version} is retired.`);
    onClose(true);
  });
  const isLast = readyOf(adapter).length === 1 && version.state === "ready";
  return html`<${Confirm} title=${`Delete version ${version.version}`} act=${act} verb="Delete" kind="danger" reason=${mayNot} onClose=${onClose}>
    <p><b>${adapter.name}:${version.version}</b> is retired for good: it serves nothing any more and its number is not used again.</p>
    ${isLast && html`<${Note} tone="warn">It is the only ready version of ${adapter.name}.<//>`}
    ${held.length > 0 && html`<${Note} tone="warn">${held.map((alias) => `@${alias}`).join(", ")} points at it.<//>`}
    <label class="check">
      <input type="checkbox" checked=${isForced} onChange=${(event) => setIsForced(event.target.checked)} />
      Force: drop its aliases, take no new request at once, and wait for those that run on it
    </label>
  <//>`;
}

const DIALOGS = { promote: Promote, rollback: Rollback, delete: Delete };
