// The parts every page is made of: markup, buttons, badges, notes, fields, tables, dialogs. Knows no server.

import { Fragment, h, render } from "./vendor/preact.js";
import { useEffect, useId, useLayoutEffect, useRef } from "./vendor/hooks.js";
import htm from "./vendor/htm.js";
import { createStore, useStore } from "./store.js";

export const html = htm.bind(h);
export { Fragment, render };

// A button that may be forbidden: it stays reachable by keyboard and says why, and does nothing.
export function Button({ kind = "", reason = "", busy = false, onClick, children, type = "button", ...rest }) {
  const id = useId();
  const isOff = Boolean(reason) || busy;
  return html`<${Fragment}>
    <button
      type=${isOff ? "button" : type}
      class=${`button ${kind}`}
      aria-disabled=${isOff ? "true" : undefined}
      aria-busy=${busy ? "true" : undefined}
      aria-describedby=${reason ? id : undefined}
      title=${reason || undefined}
      onClick=${(event) => (isOff ? event.preventDefault() : onClick?.(event))}
      ...${rest}
    >
      ${busy && html`<span class="spinner" aria-hidden="true"></span>`}${children}
    </button>
    ${reason && html`<span id=${id} class="sr-only">${reason}</span>`}
  <//>`;
}

export function Badge({ tone = "", children, title }) {
  return html`<span class=${`badge ${tone}`} title=${title}>${children}</span>`;
}

// What went wrong, as the server words it, with what its log has it under.
export function ErrorNote({ error, onRetry }) {
  if (!error) return null;
  return html`<div class="note bad" role="alert">
    <p><strong>${sentence(error.message)}</strong></p>
    <p class="fine">
      <code>${error.code ?? "INTERNAL"}</code>${error.requestId && html`<${Fragment}> · request <code>${error.requestId}</code><//>`}
    </p>
    ${onRetry && html`<${Button} onClick=${onRetry}>Try again<//>`}
  </div>`;
}

export function Note({ tone = "", children }) {
  return html`<div class=${`note ${tone}`}>${children}</div>`;
}

export function Empty({ title, children }) {
  return html`<div class="empty"><p class="empty-title">${title}</p><div class="fine">${children}</div></div>`;
}

export function Loading({ what }) {
  return html`<p class="loading" role="status"><span class="spinner" aria-hidden="true"></span>Loading ${what}…</p>`;
}

// One of three: what is wrong, that it is coming, or what came.
export function Answer({ poll, what, children }) {
  if (poll.data !== null) {
    return html`<${Fragment}><${ErrorNote} error=${poll.error} onRetry=${poll.reload} />${children(poll.data)}<//>`;
  }
  return poll.error
    ? html`<${ErrorNote} error=${poll.error} onRetry=${poll.reload} />`
    : html`<${Loading} what=${what} />`;
}

export function Field({ label, hint, children, wide = false }) {
  const id = useId();
  const props = { id, "aria-describedby": hint ? `${id}-hint` : undefined };
  return html`<div class=${`field ${wide ? "wide" : ""}`}>
    <label for=${id}>${label}</label>
    ${children(props)} ${hint && html`<p class="fine" id=${`${id}-hint`}>${hint}</p>`}
  </div>`;
}

export function Select({ label, value, options, onChange, hint, hidden = false }) {
  const id = useId();
  return html`<div class="field">
    <label for=${id} class=${hidden ? "sr-only" : ""}>${label}</label>
    <select id=${id} value=${value} onChange=${(event) => onChange(event.target.value)}>
      ${options.map(([key, text]) => html`<option key=${key} value=${key} selected=${key === value}>${text}</option>`)}
    </select>
    ${hint && html`<p class="fine">${hint}</p>`}
  </div>`;
}

// On a narrow screen each row becomes a block of its own, so the roles are said again: the layout takes them away.
export function Table({ caption, columns, rows, keyOf }) {
  return html`<div class="table-frame">
    <table role="table">
      <caption class="sr-only">${caption}</caption>
      <thead role="rowgroup">
        <tr role="row">${columns.map((c) => html`<th key=${c.title} role="columnheader" scope="col" class=${c.class}>${c.title}</th>`)}</tr>
      </thead>
      <tbody role="rowgroup">
        ${rows.map(
          (row) => html`<tr role="row" key=${keyOf(row)}>
            ${columns.map(
              (c, index) => html`<td key=${c.title} role=${index ? "cell" : "rowheader"} class=${c.class} data-title=${c.title}>
                ${c.cell(row)}
              </td>`,
            )}
          </tr>`,
        )}
      </tbody>
    </table>
  </div>`;
}

// A modal dialog; the browser keeps the focus in it and gives it back.
export function Dialog({ title, onClose, children }) {
  const dialog = useRef(null);
  const id = useId();
  useLayoutEffect(() => {
    const shown = dialog.current;
    shown.showModal();
    return () => shown.close();
  }, []);
  return html`<dialog
    ref=${dialog}
    aria-labelledby=${id}
    onCancel=${(event) => {
      event.preventDefault();
      onClose();
    }}
    onClick=${(event) => event.target === dialog.current && onClose()}
  >
    <div class="dialog-body"><h2 id=${id}>${title}</h2>${children}</div>
  </dialog>`;
}

// Asks before an act; stays open with the reason while it fails.
export function Confirm({ title, act, verb, kind = "primary", reason = "", onClose, children }) {
  return html`<${Dialog} title=${title} onClose=${onClose}>
    <form
      onSubmit=${(event) => {
        event.preventDefault();
        if (!reason) act.run();
      }}
    >
      ${children}
      <${ErrorNote} error=${act.error} />
      <div class="actions">
        <${Button} onClick=${onClose}>Cancel<//>
        <${Button} type="submit" kind=${kind} busy=${act.busy} reason=${reason}>${verb}<//>
      </div>
    </form>
  <//>`;
}

const said = createStore("");
let quietTimer = null;

// Tells what has been done, to eyes and to screen readers.
export function say(message) {
  said.set(message);
  clearTimeout(quietTimer);
  quietTimer = setTimeout(() => said.set(""), 6000);
}

export function Said() {
  const message = useStore(said);
  return html`<div class=${`said ${message ? "shown" : ""}`} role="status">${message}</div>`;
}

// The page's heading takes the focus when its page comes, so that a keyboard and a screen reader are where the eyes are.
export function Heading({ title, children, back }) {
  const heading = useRef(null);
  useEffect(() => {
    document.title = `${title} · Medley console`;
    heading.current.focus({ preventScroll: true });
    window.scrollTo(0, 0);
  }, [title]);
  return html`<header class="page-head">
    <div>
      ${back && html`<a class="back" href=${back.href}>← ${back.text}</a>`}
      <h1 ref=${heading} tabindex="-1">${title}</h1>
    </div>
    <div class="page-tools">${children}</div>
  </header>`;
}

export const sentence = (text) => text.charAt(0).toUpperCase() + text.slice(1);
