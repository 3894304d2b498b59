// Rollouts: a candidate version beside the one an alias serves, compared on live traffic; promoted or rolled back.

import { useState } from "../vendor/hooks.js";
import * as api from "../api.js";
import { adapterPath, readyOf, useAdapters } from "../adapters_data.js";
import { useMay } from "../session.js";
import { useAct, usePoll } from "../store.js";
import { Answer, Badge, Button, Confirm, Empty, Heading, html, Note, say, Select, sentence, Table } from "../view.js";
import { ago, count, duration, moment, percent, score } from "../words.js";
import { metricName } from "./quality.js";
import { Start } from "./rollout_start.js";

const STATES = { running: ["info", "running"], promoted: ["good", "promoted"], rolled_back: ["bad", "rolled back"], ended: ["", "ended"] };
const VERDICTS = {
  NO_DATA: ["", "no data yet"],
  INCONCLUSIVE: ["", "inconclusive"],
  BETTER: ["good", "candidate is better"],
  WORSE: ["bad", "candidate is worse"],
  GUARD_RAIL: ["bad", "guard rail broken"],
};
const ARMS = ["stable", "candidate"];
// Asked for by adapter, so many adapters are asked about a few at a time.
const NUM_AT_ONCE = 4;

export function Rollouts() {
  const mayNotRead = useMay("read");
  const mayNot = useMay("operate");
  const adapters = useAdapters(0);
  const [chosen, setChosen] = useState("");
  const [dialog, setDialog] = useState(null);
  const names = (adapters.data ?? []).map((adapter) => adapter.name);
  const poll = usePoll((signal) => (adapters.data ? rolloutsOf(chosen ? [chosen] : names, signal) : null), 5000, [chosen, names.join()]);
  const isMissing = poll.data === undefined;
  const startable = (adapters.data ?? []).filter((adapter) => readyOf(adapter).length > 1);
  const why = mayNot || whyNot(adapters.data, startable);
  const close = (isDone) => {
    setDialog(null);
    if (isDone === true) poll.reload();
  };
  return html`<${Heading} title="Rollouts">
      ${names.length > 1 && html`<${Select} label="Adapter" hidden=${true} value=${chosen} options=${[["", "all adapters"], ...names.map((name) => [name, name])]} onChange=${setChosen} />`}
      ${!isMissing && html`<${Button} kind="primary" reason=${why} onClick=${() => setDialog({ what: "start" })}>Start a rollout…<//>`}
    <//>
    ${mayNotRead && html`<${Note}>${mayNotRead}<//>`}
    ${isMissing && html`<${Empty} title="This server has no rollouts">It is of a version that cannot split an alias's traffic yet.<//>`}
    ${!mayNotRead &&
    !isMissing &&
    html`<${Answer} poll=${adapters.error ? adapters : poll} what="rollouts">
      ${(rollouts) => (rollouts.length ? rollouts.map((rollout) => html`<${Rollout} key=${rollout.id} rollout=${rollout} mayNot=${mayNot} open=${setDialog} />`) : html`<${None} />`)}
    <//>`}
    ${dialog?.what === "start" && html`<${Start} adapters=${startable} first=${chosen} mayNot=${mayNot} onClose=${close} />`}
    ${dialog?.rollout && html`<${End} key=${dialog.what} ...${dialog} mayNot=${mayNot} onClose=${close} />`}`;
}

function whyNot(adapters, startable) {
  if (!adapters) return "The adapters are not here yet.";
  return startable.length === 0 ? "A rollout needs an adapter with two ready versions." : "";
}

const None = () => html`<${Empty} title="No rollouts yet">
  Start one to send a part of an alias's traffic to another version, or to run it beside unseen, and let the scores decide.
<//>`;

// Returns the rollouts of these adapters, newest first; undefined where the server knows no rollouts.
async function rolloutsOf(names, signal) {
  const rollouts = [];
  for (let start = 0; start < names.length; start += NUM_AT_ONCE) {
    const asked = names.slice(start, start + NUM_AT_ONCE).map((name) => api.call("GET", `${adapterPath(name)}/rollouts`, { signal }));
    try {
      for (const answer of await Promise.all(asked)) rollouts.push(...answer.rollouts);
    } catch (error) {
      if (error.status === 404 && names.length > 0) return undefined;
      throw error;
    }
  }
  return rollouts.sort((a, b) => b.created_s - a.created_s);
}

function Rollout({ rollout, mayNot, open }) {
  const isRunning = rollout.state === "running";
  const [tone, state] = STATES[rollout.state] ?? ["", rollout.state];
  const [verdictTone, verdict] = VERDICTS[rollout.verdict] ?? ["", rollout.verdict];
  const how = rollout.mode === "shadow" ? `shadows ${rollout.percent} %` : `gets ${rollout.percent} %`;
  return html`<article class="card rollout" aria-label=${`Rollout of ${rollout.adapter}`}>
    <div class="card-head">
      <div>
        <h2>
          <a href=${`#/adapters/${encodeURIComponent(rollout.adapter)}`}>${rollout.adapter}</a>@${rollout.alias}: version ${rollout.stable_version} → ${rollout.candidate_version}
        </h2>
        <p class="fine">
          The candidate ${how} · judged by ${metricName(rollout.metric)} · ${rollout.automatic ? "decides by itself" : "waits for you"} ·
          ${" "}<span title=${moment(rollout.created_s)}>started ${ago(rollout.created_s)}</span>
          ${rollout.ended_s && html`, <span title=${moment(rollout.ended_s)}>ended ${ago(rollout.ended_s)}</span>`}
        </p>
      </div>
      <span class="badges"><${Badge} tone=${tone}>${state}<//><${Badge} tone=${verdictTone}>${verdict}<//></span>
    </div>
    <${Arms} rollout=${rollout} />
    <div class="card-foot">
      <${Decisions} decisions=${rollout.decisions} />
      ${isRunning &&
      html`<div class="actions">
        <${Button} reason=${mayNot} kind="danger" onClick=${() => open({ what: "rollback", rollout })}>Roll back…<//>
        <${Button} reason=${mayNot} kind="primary" onClick=${() => open({ what: "promote", rollout })}>Promote…<//>
      </div>`}
    </div>
  </article>`;
}

function Arms({ rollout }) {
  const rows = ARMS.filter((arm) => rollout.arms[arm]).map((arm) => ({ arm, ...rollout.arms[arm] }));
  const version = (arm) => (arm === "stable" ? rollout.stable_version : rollout.candidate_version);
  const columns = [
    { title: "Arm", class: "main", cell: (row) => html`<b>${row.arm}</b> <span class="fine">version ${version(row.arm)}</span>` },
    { title: "Requests", class: "number", cell: (row) => count(row.num_requests) },
    { title: "Scored", class: "number", cell: (row) => count(row.num_scored) },
    { title: metricName(rollout.metric), class: "number", cell: (row) => html`<b>${score(row.mean)}</b>` },
    { title: "Errors", class: "number", cell: (row) => percent(row.error_rate) },
    { title: "End to end, p95", class: "number", cell: (row) => duration(row.p95_e2e_ms === null ? null : row.p95_e2e_ms / 1000) },
  ];
  return html`<${Table} caption="Arms" columns=${columns} rows=${rows} keyOf=${(row) => row.arm} />`;
}

function Decisions({ decisions }) {
  if (decisions.length === 0) return html`<p class="fine">Nothing decided yet.</p>`;
  const last = decisions.at(-1);
  return html`<details class="decisions">
    <summary>${decisions.length === 1 ? "1 decision" : `${decisions.length} decisions`}, the last: ${last.reason || last.action.replaceAll("_", " ")}</summary>
    <ol class="events">
      ${decisions.map(
        (decision, i) => html`<li key=${i}>
          <time title=${moment(decision.at_s)}>${ago(decision.at_s)}</time>
          <span>
            <b>${decision.action.replaceAll("_", " ")}</b> <span class="fine">by ${decision.by}</span>
            ${decision.reason && html`<br />${sentence(decision.reason)}`}
            ${Object.keys(decision.data ?? {}).length > 0 && html`<br /><code class="data">${JSON.stringify(decision.data, shortened)}</code>`}
          </span>
        </li>`,
      )}
    </ol>
  </details>`;
}

// A mean to fifteen digits hides what it says.
const shortened = (key, value) => (typeof value === "number" && !Number.isInteger(value) ? Number(value.toPrecision(5)) : value);

function End({ what, rollout, mayNot, onClose }) {
  const isPromotion = what === "promote";
  const name = `${rollout.adapter}@${rollout.alias}`;
  const act = useAct(async () => {
    await api.call("POST", `${adapterPath(rollout.adapter)}/rollouts/${api.quoted(rollout.id)}/${what}`);
    say(isPromotion ? `${name} is version ${rollout.candidate_version} now.` : `${name} stays version ${rollout.stable_version}.`);
    onClose(true);
  });
  const [, verdict] = VERDICTS[rollout.verdict] ?? ["", rollout.verdict];
  return html`<${Confirm}
    title=${isPromotion ? "Promote the candidate" : "Roll the candidate back"}
    act=${act}
    verb=${isPromotion ? "Promote" : "Roll back"}
    kind=${isPromotion ? "primary" : "danger"}
    reason=${mayNot}
    onClose=${onClose}
  >
    <p>
      ${isPromotion ? `All of ${name}'s traffic goes to version ${rollout.candidate_version}` : `All of ${name}'s traffic stays on version ${rollout.stable_version}`}, and the
      rollout ends. So far: <b>${verdict}</b>.
    </p>
    ${isPromotion && rollout.verdict !== "BETTER" && html`<${Note} tone="warn">The scores do not say that the candidate is better.<//>`}
  <//>`;
}
