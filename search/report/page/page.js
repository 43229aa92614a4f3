// Draws the figures. Colours come from the style sheet, so a change of theme, or printing, draws them anew.
"use strict";
(() => {
  const root = document.documentElement;
  const narrow = matchMedia("(max-width: 620px)");
  const touch = matchMedia("(pointer: coarse)");
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const PRINT = { width: 680, height: 340 }; // what fits between the margins of A4 and Letter, in pixels
  let printing = false; // also while the theme turns light for the paper
  const views = new Map(); // element -> index of the view that is shown
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

  // ---- direct labels ----

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

  // ---- drawing ----

  const figureOf = (element) => JSON.parse(document.getElementById(`${element.id}-data`).textContent);

  function layoutOf(element, figure) {
    const layout = resolve(figure.layout);
    const view = figure.views[views.get(element) || 0];
    const settings = { ...(view ? view.settings : {}), ...(narrow.matches ? figure.narrow : {}) };
    for (const [path, value] of Object.entries(settings)) {
      const [part, key] = path.split(".");
      layout[part][key] = Array.isArray(value) ? value.slice() : value;
    }
    layout.width = printing ? PRINT.width : element.clientWidth;
    if (printing) layout.height = Math.min(layout.height, PRINT.height);
    if (printing && element.closest(".panels")) Object.assign(layout, { width: PRINT.width / 2 - 12, height: 230 });
    if (narrow.matches) layout.margin = { ...layout.margin, l: Math.min(layout.margin.l, 44), r: 8 };
    if (figure.labelsBeside) layout.margin.r = 32 + Math.max(0, ...figure.labels.map(widthOf));
    if (touch.matches) layout.dragmode = false;
    return layout;
  }

  function draw(element) {
    const figure = figureOf(element);
    const config = { displayModeBar: false, responsive: false, doubleClick: "reset" };
    const traces = figure.traces.map((trace) => resolve(trace));
    return Plotly.react(element, traces, layoutOf(element, figure), config).then(() => {
      label(element, figure);
      if (!element.dataset.drawn) {
        element.on("plotly_relayout", (change) => "annotations" in change || label(element, figureOf(element)));
      }
      element.dataset.drawn = "true";
    });
  }

  function label(element, figure) {
    if (!figure.labels.length) return;
    const { xaxis, yaxis } = element._fullLayout;
    const axes = {
      across: (x) => xaxis.d2p(x), down: (y) => yaxis.d2p(y), width: xaxis._length, height: yaxis._length,
    };
    const { annotations = [], shapes = [] } = resolve(figure.layout);
    const beside = figure.labelsBeside ? labelsBeside(figure, axes) : { annotations: labelsAround(figure, axes), shapes: [] };
    Plotly.relayout(element, {
      annotations: [...annotations, ...beside.annotations], shapes: [...shapes, ...beside.shapes],
    });
  }

  function viewButtons(element) {
    const { views: choices } = figureOf(element);
    if (choices.length < 2) return;
    const row = document.createElement("div");
    row.className = "views";
    choices.forEach((view, index) => {
      const button = document.createElement("button");
      button.type = "button";
      button.textContent = view.name;
      button.setAttribute("aria-pressed", String(index === 0));
      button.addEventListener("click", () => {
        views.set(element, index);
        [...row.children].forEach((other, at) => other.setAttribute("aria-pressed", String(at === index)));
        draw(element);
      });
      row.append(button);
    });
    element.before(row);
  }

  const plots = [...document.querySelectorAll(".plot")];
  const drawAll = () => plots.forEach(draw);

  plots.forEach(async (element) => {
    try {
      viewButtons(element);
      await draw(element);
    } catch (error) {
      element.textContent = "This figure could not be drawn.";
      element.classList.add("undrawn");
      throw error;
    }
  });

  dark.addEventListener("change", drawAll);
  let pending = 0;
  let lastWidth = innerWidth;
  addEventListener("resize", () => {
    if (innerWidth === lastWidth) return;
    lastWidth = innerWidth;
    cancelAnimationFrame(pending);
    pending = requestAnimationFrame(drawAll);
  });
  addEventListener("beforeprint", () => { printing = true; drawAll(); });
  addEventListener("afterprint", () => { printing = false; drawAll(); });
})();
