// Calls the server, with the operator's key, and turns every failure into one kind of error. Knows no page.

export class ApiError extends Error {
  constructor(message, { status = 0, code = "UNAVAILABLE", requestId = "", param = null } = {}) {
    super(message);
    this.status = status;
    this.code = code;
    this.requestId = requestId;
    this.param = param;
  }
}

let token = null;
let onRefusedKey = () => {};

// Every later call carries this key; null for none.
export function useToken(value) {
  token = value;
}

// What to do when the server no longer takes the key.
export function whenKeyIsRefused(callback) {
  onRefusedKey = callback;
}

function headersOf(method, extra = {}) {
  const headers = { ...extra };
  if (token) headers.authorization = `Bearer ${token}`;
  // A change that is sent twice, as by a browser that repeats it on a broken connection, is made once.
  if (method !== "GET") headers["idempotency-key"] = randomWord();
  return headers;
}

// crypto.randomUUID is missing where the page comes over plain HTTP from an IP address.
function randomWord() {
  return [...crypto.getRandomValues(new Uint8Array(16))].map((byte) => byte.toString(16).padStart(2, "0")).join("");
}

function errorOf(status, text) {
  try {
    const { message, code, request_id: requestId, param } = JSON.parse(text).error;
    return new ApiError(message, { status, code, requestId, param });
  } catch {
    return new ApiError(`the server answered ${status} without saying why`, { status, code: "INTERNAL" });
  }
}

async function request(method, path, { json, signal } = {}) {
  const headers = headersOf(method, json === undefined ? {} : { "content-type": "application/json" });
  const body = json === undefined ? undefined : JSON.stringify(json);
  let response;
  try {
    response = await fetch(path, { method, headers, body, signal, cache: "no-store" });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ApiError("the server cannot be reached");
  }
  if (!response.ok) throw refused(errorOf(response.status, await response.text()));
  return response;
}

function refused(error) {
  if (error.status === 401 && token) onRefusedKey(error);
  return error;
}

export async function call(method, path, options) {
  return (await request(method, path, options)).json();
}

export async function text(path, options) {
  return (await request("GET", path, options)).text();
}

// Sends `json` and hands on each server-sent event's payload as it comes.
export async function stream(path, json, onEvent, signal) {
  const response = await request("POST", path, { json, signal });
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    const events = (rest + value).split("\n\n");
    rest = events.pop();
    for (const event of events) {
      const data = event.replace(/^data: /, "");
      if (data === "[DONE]") continue;
      const payload = JSON.parse(data);
      if (payload.error) throw new ApiError(payload.error.message, { ...payload.error, requestId: payload.error.request_id });
      onEvent(payload);
    }
  }
}

// Sends a form and tells how much of it is on its way; fetch cannot tell. Returns { done, abort }.
export function upload(path, form, onProgress) {
  const sending = new XMLHttpRequest();
  const done = new Promise((resolve, reject) => {
    sending.upload.onprogress = (event) => onProgress(event.loaded, event.total);
    sending.onerror = () => reject(new ApiError("the connection broke off before the server had answered"));
    sending.onabort = () => reject(new ApiError("cancelled", { code: "CANCELLED" }));
    sending.onload = () => {
      if (sending.status >= 200 && sending.status < 300) resolve(JSON.parse(sending.responseText));
      else reject(refused(errorOf(sending.status, sending.responseText)));
    };
    sending.open("POST", path);
    for (const [name, value] of Object.entries(headersOf("POST"))) sending.setRequestHeader(name, value);
    sending.send(form);
  });
  return { done, abort: () => sending.abort() };
}

export const quoted = encodeURIComponent;
