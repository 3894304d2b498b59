// Line icons of our own, drawn on a grid of 20. They only repeat what the text beside them says.

import { html } from "./view.js";

const PATHS = {
  adapters: "M3 6h14M3 10h14M3 14h14M7 4v4M13 8v4M9 12v4",
  live: "M2 11h4l2-6 4 10 2-4h4",
  quality: "M3 3v14h14M6 12l3-3 3 2 5-6",
  rollouts: "M4 10h5c4 0 3-5 8-5M9 10c4 0 3 5 8 5M14 3l3 2-3 2M14 13l3 2-3 2",
  upload: "M10 13V3M6 7l4-4 4 4M3 13v4h14v-4",
  playground: "M3 4h6v12H3zM11 4h6v12h-6zM5 8h2M13 8h2M13 11h2",
  system: "M3 4h14v9H3zM7 17h6M10 13v4",
  light: "M10 6.5a3.5 3.5 0 1 1 0 7 3.5 3.5 0 0 1 0-7zM10 1.5v2M10 16.5v2M1.5 10h2M16.5 10h2M4 4l1.4 1.4M14.6 14.6 16 16M4 16l1.4-1.4M14.6 5.4 16 4",
  dark: "M16 12.5A7 7 0 0 1 7.5 4a6.5 6.5 0 1 0 8.5 8.5z",
  open: "M5 9h10v8H5zM7 9V6a3 3 0 0 1 5.8-1",
};

export const icon = (name) =>
  html`<svg class="icon" viewBox="0 0 20 20" width="20" height="20" aria-hidden="true"><path d=${PATHS[name]} /></svg>`;
