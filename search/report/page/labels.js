// Direct labels: a text beside its point, where it hides least.
const LINE = 15, GAP = 11;
const PLACES = [ // around a point, the best first, in steps of GAP across and LINE down
  [1, 0], [-1, 0], [0, -1], [0, 1], [1, -1], [1, 1], [-1, -1], [-1, 1],
  [1, -1.9], [1, 1.9], [-1, -1.9], [-1, 1.9], [1, -2.8], [1, 2.8], [-1, -2.8], [-1, 2.8],
];

const wording = (label) => (narrow.matches ? label.short : label.text);

function widthOf(label) {
  pen.font = `${label.strong ? 650 : 450} 12px ${property("font")}`;
  const text = wording(label).replace(/&lt;/g, "<").replace(/&gt;/g, ">").replace(/&amp;/g, "&");
  return pen.measureText(text).width;
}

const text = (label, more) => ({
  text: label.strong ? `<b>${wording(label)}</b>` : wording(label),
  showarrow: false, align: "left", xanchor: "left", yanchor: "middle",
  font: { size: 12, color: colour(label.colour) },
  ...more,
});

const overlap = (a, b) =>
  Math.max(0, Math.min(a.x1, b.x1) - Math.max(a.x0, b.x0)) *
  Math.max(0, Math.min(a.y1, b.y1) - Math.max(a.y0, b.y0));

function boxAt(x, y, width, [dx, dy]) {
  const x0 = dx > 0 ? x + GAP : dx < 0 ? x - GAP - width : x - width / 2;
  const middle = y + dy * LINE + (dx === 0 ? Math.sign(dy) * 3 : 0);
  return { x0, x1: x0 + width, y0: middle - LINE / 2, y1: middle + LINE / 2 };
}

// Each label in the place around its point where it hides least, the most important label first.
function labelsAround(figure, axes) {
  const { across, down, width, height } = axes;
  const taken = [...markBoxes(figure, axes), ...lineBoxes(figure, axes)];
  const visible = figure.labels.filter(({ x, y }) =>
    across(x) >= -1 && across(x) <= width + 1 && down(y) >= -1 && down(y) <= height + 1);
  return visible.map((label) => {
    const x = across(label.x), y = down(label.y), size = widthOf(label);
    const cost = (box, rank) => 12 * rank +
      60 * (Math.max(0, -box.x0) + Math.max(0, box.x1 - width) + Math.max(0, -box.y0) + Math.max(0, box.y1 - height)) +
      taken.reduce((sum, other) => sum + other.weight * overlap(box, other), 0);
    const boxes = PLACES.map((place) => boxAt(x, y, size, place));
    const best = boxes.map((box, rank) => ({ box, cost: cost(box, rank) })).reduce((a, b) => (b.cost < a.cost ? b : a)).box;
    taken.push({ ...best, weight: 6 });
    return text(label, {
      xref: "paper", yref: "paper", x: best.x0 / width, y: 1 - (best.y0 + best.y1) / 2 / height,
      bgcolor: colour("@paper 0.7"), borderpad: 0,
    });
  });
}

function markBoxes(figure, { across, down }) {
  return figure.traces.filter((trace) => (trace.mode || "").includes("markers")).flatMap((trace) => {
    const half = ((trace.marker || {}).size || 6) / 2 + 2;
    const weight = trace.x.length > 1 ? 0.8 : 2;
    return trace.x.map((value, at) => {
      const x = across(value), y = down(trace.y[at]);
      return { x0: x - half, x1: x + half, y0: y - half, y1: y + half, weight };
    });
  });
}

// Lines as rows of small boxes.
function lineBoxes(figure, { across, down }) {
  const boxes = [];
  const segment = (x0, y0, x1, y1) => {
    const steps = Math.min(200, Math.ceil(Math.hypot(x1 - x0, y1 - y0) / 6));
    for (let step = 0; step <= steps; step += 1) {
      const x = x0 + ((x1 - x0) * step) / steps, y = y0 + ((y1 - y0) * step) / steps;
      boxes.push({ x0: x - 3, x1: x + 3, y0: y - 3, y1: y + 3, weight: 0.5 });
    }
  };
  for (const trace of figure.traces) {
    if (trace.mode !== "lines") continue;
    for (let at = 1; at < trace.x.length; at += 1) {
      if (trace.x[at] === null || trace.x[at - 1] === null) continue;
      const [x0, y0, x1, y1] = [across(trace.x[at - 1]), down(trace.y[at - 1]), across(trace.x[at]), down(trace.y[at])];
      if (trace.line.shape === "hv") { segment(x0, y0, x1, y0); segment(x1, y0, x1, y1); }
      else segment(x0, y0, x1, y1);
    }
  }
  return boxes;
}

// Labels in a column to the right, in the order of their heights and no closer than a line, each joined to its height.
function labelsBeside(figure, { down, width, height }) {
  const column = figure.labels.map((label) => ({ label, from: down(label.y) }))
    .filter(({ from }) => from >= -1 && from <= height + 1)
    .sort((a, b) => a.from - b.from);
  column.forEach((one) => { one.to = one.from; });
  for (let round = 0; round < 60; round += 1) { // push neighbours apart, each by half of what is missing
    for (let at = 1; at < column.length; at += 1) {
      const missing = LINE - (column[at].to - column[at - 1].to);
      if (missing > 0.1) { column[at - 1].to -= missing / 2; column[at].to += missing / 2; }
    }
  }
  const share = (pixels) => 1 - pixels / height;
  return {
    annotations: column.map(({ label, to }) =>
      text(label, { xref: "paper", yref: "paper", x: 1, xshift: 26, y: share(to) })),
    shapes: column.map(({ label, from, to }) => ({
      type: "path", xref: "paper", yref: "paper",
      path: `M ${1 + 8 / width},${share(from)} L ${1 + 24 / width},${share(to)}`,
      line: { color: colour(label.colour), width: 0.8 },
    })),
  };
}
