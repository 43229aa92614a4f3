// Draws the figures.
const dataOf = (element) => JSON.parse(document.getElementById(`${element.id}-data`).textContent);

function figureOf(element) {
  const whole = dataOf(element);
  const figure = whole.alternatives[alternatives.get(element) - 1] || whole;
  return element.id === "front" ? withWay(figure) : figure;
}

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
      leadToRows(element);
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

function chooseView(element, index) {
  views.set(element, index);
  const row = element.previousElementSibling;
  const buttons = row && row.className === "views" ? [...row.children] : [];
  buttons.forEach((button, at) => button.setAttribute("aria-pressed", String(at === index)));
  draw(element);
}

// A menu of the figures that may stand in this place; the first is the one that is there.
function alternativesMenu(element) {
  const whole = dataOf(element);
  if (!whole.alternatives.length) return;
  const menu = document.createElement("select");
  menu.className = "alternatives";
  menu.setAttribute("aria-label", "objectives");
  for (const name of [whole.title, ...whole.alternatives.map((one) => one.name)]) {
    const option = document.createElement("option");
    option.textContent = name;
    menu.append(option);
  }
  menu.addEventListener("change", () => {
    alternatives.set(element, menu.selectedIndex);
    views.delete(element);
    viewButtons(element);
    draw(element);
  });
  element.before(menu);
}

function viewButtons(element) {
  const before = element.previousElementSibling;
  if (before && before.className === "views") before.remove();
  const { views: choices } = figureOf(element);
  if (choices.length < 2) return;
  const row = document.createElement("div");
  row.className = "views";
  choices.forEach((view, index) => {
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = view.name;
    button.setAttribute("aria-pressed", String(index === 0));
    button.addEventListener("click", () => chooseView(element, index));
    row.append(button);
  });
  element.before(row);
}

const plots = [...document.querySelectorAll(".plot")];
const drawAll = () => plots.forEach(draw);

function drawAgainWhenThePageChanges() {
  let pending = 0;
  let lastWidth = innerWidth;
  dark.addEventListener("change", drawAll);
  addEventListener("resize", () => {
    if (innerWidth === lastWidth) return;
    lastWidth = innerWidth;
    cancelAnimationFrame(pending);
    pending = requestAnimationFrame(drawAll);
  });
  addEventListener("beforeprint", () => { printing = true; drawAll(); });
  addEventListener("afterprint", () => { printing = false; drawAll(); });
}

const ready = unpack("plotly");
ready.then(drawAgainWhenThePageChanges);
plots.forEach(async (element) => {
  try {
    await ready;
    alternativesMenu(element);
    viewButtons(element);
    await draw(element);
  } catch (error) {
    element.textContent = "This figure could not be drawn.";
    element.classList.add("undrawn");
    throw error;
  }
});
