// Starts a rollout.

import { useState } from "../vendor/hooks.js";
import * as api from "../api.js";
import { adapterPath, makeOf, readyOf, servedOf } from "../adapters_data.js";
import { useAct } from "../store.js";
import { Confirm, Field, html, say, Select } from "../view.js";
import { FIRST_METRICS } from "./quality.js";

const MODES = [
  ["canary", "Canary: answers a part of the traffic"],
  ["shadow", "Shadow: runs beside, never answers"],
];
const LIMITS = [
  ["min_effect", "Smallest difference that matters", "Points of the measure"],
  ["max_num_requests", "Most requests", "Then it ends undecided"],
  ["max_error_rate_increase", "Largest increase of the error rate", "As a share, 0.02 is two in a hundred"],
  ["max_latency_ratio", "Largest p95 latency ratio", "1.5 lets the candidate take half as long again"],
];

export function Start({ adapters, first, mayNot, onClose }) {
  const [name, setName] = useState(adapters.some((adapter) => adapter.name === first) ? first : adapters[0].name);
  const adapter = adapters.find((known) => known.name === name);
  const candidates = readyOf(adapter).filter((version) => version.version !== servedOf(adapter).version).reverse();
  const [form, setForm] = useState({ alias: "stable", candidate: "", mode: "canary", percent: "10", metric: "rougeL", automatic: true });
  const set = (field) => (value) => setForm((before) => ({ ...before, [field]: value }));
  const candidate = candidates.some((version) => String(version.version) === form.candidate) ? form.candidate : String(candidates[0]?.version ?? "");
  const act = useAct(async () => {
    await api.call("POST", `${adapterPath(name)}/rollouts`, { json: bodyOf({ ...form, candidate }) });
    say(`Version ${candidate} of ${name} is being rolled out.`);
    onClose(true);
  });
  return html`<${Confirm} title="Start a rollout" act=${act} verb="Start" reason=${mayNot} onClose=${onClose}>
    <div class="form-grid">
      <${Select} label="Adapter" value=${name} options=${adapters.map((known) => [known.name, known.name])} onChange=${setName} />
      <${Select}
        label="Candidate"
        value=${candidate}
        options=${candidates.map((version) => [String(version.version), `version ${version.version} (${makeOf(version)})`])}
        onChange=${set("candidate")}
      />
      <${Text} label="Alias" value=${form.alias} onChange=${set("alias")} required />
      <${Select} label="Mode" value=${form.mode} options=${MODES} onChange=${set("mode")} />
      <${Text} label="Percent of the traffic" type="number" min="1" max="100" value=${form.percent} onChange=${set("percent")} required />
      <${Text} label="Measure" list="metrics" value=${form.metric} onChange=${set("metric")} required />
      <datalist id="metrics">${FIRST_METRICS.map((metric) => html`<option key=${metric} value=${metric} />`)}</datalist>
    </div>
    <label class="check">
      <input type="checkbox" checked=${form.automatic} onChange=${(event) => set("automatic")(event.target.checked)} />
      Promote or roll back by itself as soon as the scores are clear
    </label>
    <details>
      <summary>Limits</summary>
      <div class="form-grid">
        ${LIMITS.map(
          ([field, label, hint]) =>
            html`<${Text} key=${field} label=${label} hint=${hint} type="number" step="any" min="0" value=${form[field] ?? ""} onChange=${set(field)} />`,
        )}
      </div>
      <p class="fine">What is left empty is as the server has it.</p>
    </details>
  <//>`;
}

function Text({ label, hint, value, onChange, ...rest }) {
  return html`<${Field} label=${label} hint=${hint}>
    ${(props) => html`<input ...${props} ...${rest} value=${value} onInput=${(event) => onChange(event.target.value.trim())} />`}
  <//>`;
}

function bodyOf(form) {
  const body = {
    alias: form.alias,
    candidate: Number(form.candidate),
    mode: form.mode,
    percent: Number(form.percent),
    metric: form.metric,
    automatic: form.automatic,
  };
  for (const [field] of LIMITS) if (form[field]) body[field] = Number(form[field]);
  return body;
}
