// Colours come from the style sheet, so that a change of theme, or printing, draws the figures anew.
const root = document.documentElement;
const narrow = matchMedia("(max-width: 620px)");
const touch = matchMedia("(pointer: coarse)");
const dark = matchMedia("(prefers-color-scheme: dark)");
const PRINT = { width: 680, height: 340 }; // what fits between the margins of A4 and Letter, in pixels
let printing = false; // also while the theme turns light for the paper
const views = new Map(); // element -> index of the view that is shown
const alternatives = new Map(); // element -> index of the figure that is shown in its menu, 0 for the first
const pen = document.createElement("canvas").getContext("2d");

const property = (name) => getComputedStyle(root).getPropertyValue(`--${name}`).trim();

// "@accent 0.4" -> "rgba(36, 88, 211, 0.4)" throughout a figure; anything else stays as it is.
function colour(text) {
  const match = /^@([a-z]+)(?: ([0-9.]+))?$/.exec(text);
  const value = match ? property(match[1]) : "";
  if (!value || match[2] === undefined) return value || text;
  const [red, green, blue] = [1, 3, 5].map((at) => parseInt(value.slice(at, at + 2), 16));
  return `rgba(${red}, ${green}, ${blue}, ${match[2]})`;
}

const TEXTS = new Set(["text", "hovertext", "ticktext"]); // what a run is called may look like a colour

function resolve(value, key) {
  if (TEXTS.has(key) && typeof value !== "object") return value;
  if (key === "hovertext" || key === "ticktext") return value;
  if (typeof value === "string") return colour(value);
  if (Array.isArray(value)) return key === "text" ? value : value.map((item) => resolve(item));
  if (value && typeof value === "object") {
    return Object.fromEntries(Object.entries(value).map(([name, item]) => [name, resolve(item, name)]));
  }
  return value;
}
