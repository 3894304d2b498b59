// Who is signed in and what the key may do. The key lives in this tab's sessionStorage and goes with it.

import * as api from "./api.js";
import { createStore, useStore } from "./store.js";

const STORED = "medley-key";
const SIGNED_OUT = { state: "signed-out", key: null, problem: "" };

export const session = createStore({ state: "starting", key: null, problem: "" });

export const asksForKey = () => document.documentElement.dataset.keys === "required";

export async function resume() {
  api.whenKeyIsRefused((error) => signOut(error.message));
  const stored = storedToken();
  if (stored || !asksForKey()) await signIn(stored, { isNew: false });
  else session.set(SIGNED_OUT);
}

// Returns whether the server takes the key; the session says why it does not.
export async function signIn(token, { isNew = true } = {}) {
  api.useToken(token);
  try {
    const key = await api.call("GET", "/v1/keys/self");
    if (token) sessionStorage.setItem(STORED, token);
    session.set({ state: "signed-in", key, problem: "" });
    return true;
  } catch (error) {
    api.useToken(null);
    if (error.status === 401) sessionStorage.removeItem(STORED);
    session.set({ ...SIGNED_OUT, problem: error.message, isNew });
    return false;
  }
}

export function signOut(problem = "") {
  api.useToken(null);
  sessionStorage.removeItem(STORED);
  session.set({ ...SIGNED_OUT, problem });
}

function storedToken() {
  try {
    return sessionStorage.getItem(STORED);
  } catch {
    return null;
  }
}

// Returns why the key may not do what a scope stands for, or "" if it may.
export function useMay(scope) {
  const { key } = useStore(session);
  return key?.scopes.includes(scope) ? "" : `This needs a key with the scope ${scope}.`;
}

// The same for figures over all adapters.
export function useMaySeeAll() {
  const { key } = useStore(session);
  const mayRead = useMay("read");
  return mayRead || (key?.sees_all ? "" : "This needs a key for all adapters.");
}
