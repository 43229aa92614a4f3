// A mark leads to the row of its evaluation, and a row back to its candidate's way through the front.
let followed = null; // the candidate whose way stands out
let tapped = null; // where there is no hover, the first tap shows the text of a mark and the second goes on

const rowOf = (point) => (typeof point.customdata === "string" ? document.getElementById(point.customdata) : null);

function goToRow(row) {
  row.dispatchEvent(new Event("reveal"));
  location.hash = row.id; // :target marks the row, and the way back is the browser's
  row.scrollIntoView(); // below its margin, near the middle of the screen
  row.focus({ preventScroll: true });
}

function leadToRows(element) {
  element.on("plotly_click", ({ points }) => {
    const row = rowOf(points[0]);
    if (!row) return;
    if (touch.matches && tapped !== row.id) { tapped = row.id; return; }
    goToRow(row);
  });
  const pointing = (is) => ({ points }) => element.classList.toggle("leads", is && Boolean(rowOf(points[0])));
  element.on("plotly_hover", pointing(true));
  element.on("plotly_unhover", pointing(false));
}

// The marks of one candidate in a figure, rung after rung, with a line through them.
function wayOf(figure, candidate) {
  const rung = (id) => { const found = /^trial-(\d+)-/.exec(id); return found ? Number(found[1]) : Infinity; };
  const stops = figure.traces.flatMap((trace) => (trace.customdata || []).map((id, at) =>
    ({ id, x: trace.x[at], y: trace.y[at], text: trace.text[at] })))
    .filter(({ id }) => document.getElementById(id)?.dataset.candidate === candidate)
    .sort((a, b) => rung(a.id) - rung(b.id));
  return {
    type: "scatter", mode: "lines+markers", hoverinfo: "text",
    x: stops.map(({ x }) => x), y: stops.map(({ y }) => y),
    text: stops.map(({ text }) => text), customdata: stops.map(({ id }) => id),
    line: { color: "@warn", width: 2.5 }, marker: { color: "@warn", size: 9, symbol: "circle-open", line: { width: 2.5 } },
  };
}

function withWay(figure) {
  const way = followed === null ? { x: [] } : wayOf(figure, followed);
  if (!way.x.length) return figure;
  const name = followed.replace(/&/g, "&amp;").replace(/</g, "&lt;");
  const label = { x: way.x.at(-1), y: way.y.at(-1), text: name, short: name, colour: "@warn", strong: true };
  return { ...figure, traces: [...figure.traces, way], labels: [label, ...figure.labels] };
}

document.addEventListener("click", (event) => {
  const link = event.target.closest("a[data-follow]");
  const front = document.getElementById("front");
  if (!link || !front) return;
  event.preventDefault();
  followed = link.closest("tr").dataset.candidate;
  chooseView(front, figureOf(front).views.length - 1); // the last shows everything
  front.closest("section").scrollIntoView();
});

document.addEventListener("keydown", (event) => {
  const front = document.getElementById("front");
  if (event.key !== "Escape" || followed === null || !front) return;
  followed = null;
  draw(front);
});
