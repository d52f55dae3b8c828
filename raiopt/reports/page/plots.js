"use strict";

const data = JSON.parse(document.getElementById("data").textContent);
const find = (selector, within = document) => within.querySelector(selector);
const all = (selector, within = document) => [...within.querySelectorAll(selector)];
const percent = (share) => (share === null ? "–" : `${(100 * share).toFixed(1)}\u00a0%`);
const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();
const mixed = (from, to, share) => {
  const [a, b] = [colour(from), colour(to)].map((hex) => [1, 3, 5].map((at) => parseInt(hex.slice(at, at + 2), 16)));
  return `rgb(${a.map((value, at) => Math.round(value + (b[at] - value) * share)).join(",")})`;
};
// Plotly reads a little HTML in every text that it draws.
const plain = (text) => String(text).replace(/&/g, "&amp;").replace(/</g, "&lt;").replace(/>/g, "&gt;");
const DASHES = ["solid", "dash", "dot", "dashdot", "longdash"];
const MARKERS = ["circle", "square", "diamond", "triangle-up", "x", "cross", "star"];
const SHOWN = 8;
const BANDS = 4;
const TONES = 9;
const CIVIDIS = ["#00224e", "#22416f", "#41597a", "#5f6b77", "#7c7b78", "#9a8c76", "#b8a86a", "#d9c55c", "#fdea45"];

function element(name, attributes = {}, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.append(...children);
  return made;
}

/* Plots: each has a picture, a legend of buttons, a summary in words, and its numbers as a table. */

const redraws = [];

function axis(title, more = {}) {
  const line = colour("line");
  return {
    title: { text: plain(title), standoff: 10 }, gridcolor: line, zerolinecolor: line, linecolor: colour("edge"),
    automargin: true, fixedrange: true, ...more,
  };
}

function draw(figure, traces, layout) {
  const ink = colour("ink");
  const hoverlabel = { bgcolor: colour("raised"), bordercolor: colour("edge"), font: { color: ink }, align: "left" };
  const basic = {
    paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", showlegend: false, dragmode: false, hoverlabel,
    font: { family: getComputedStyle(document.body).fontFamily, size: 13, color: ink },
    margin: { l: 10, r: 16, t: 16, b: 10 }, height: 400,
  };
  const canvas = find(".canvas", figure);
  Plotly.react(canvas, traces, { ...basic, ...layout }, { displayModeBar: false, responsive: true });
}

function describe(figure, words, columns, rows) {
  find(".summary", figure).textContent = words;
  const details = find("details", figure);
  const fill = () => details.open && find(".scroll", details).replaceChildren(table(find("h3", figure).textContent, columns, rows()));
  details.ontoggle = fill;
  fill();
}

function table(caption, columns, rows) {
  const head = element("tr", {}, ...columns.map((name) => element("th", { scope: "col" }, name)));
  const body = rows.map((row) => element("tr", {}, ...row.map((value) => element("td", {}, String(value ?? "–")))));
  const title = element("caption", { class: "hidden" }, caption);
  return element("table", {}, title, element("thead", {}, head), element("tbody", {}, ...body));
}

function style(index) {
  return { colour: colour(`c${index % 7}`), dash: DASHES[Math.floor(index / 7) % DASHES.length], marker: MARKERS[index % 7] };
}

const SHAPES = ["M14 1a4 4 0 1 0 .01 0", "M10 1h8v8h-8z", "M14 0l5 5-5 5-5-5z", "M14 0l5 9h-10z", "M10 1l8 8m0-8l-8 8", "M14 0v10m-5-5h10", "M14 0l1.5 3.5 3.5.3-2.7 2.4.8 3.6-3.1-1.9-3.1 1.9.8-3.6-2.7-2.4 3.5-.3z"];
const PATTERNS = { solid: "none", dash: "6 4", dot: "2 3", dashdot: "6 3 2 3", longdash: "10 4" };

function swatch(index) {
  const drawn = (name, attributes) => {
    const made = document.createElementNS("http://www.w3.org/2000/svg", name);
    for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
    return made;
  };
  const picture = drawn("svg", { width: 28, height: 10, "aria-hidden": true });
  const tone = `var(--c${index % 7})`;
  picture.append(drawn("path", { d: "M0 5h28", style: `stroke: ${tone}; stroke-width: 2.5; stroke-dasharray: ${PATTERNS[style(index).dash]}` }));
  picture.append(drawn("path", { d: SHAPES[index % 7], style: `fill: ${tone}; stroke: ${tone}; stroke-width: 2` }));
  return picture;
}

/** Makes the buttons that show and hide curves; returns the numbers of the curves that are shown. */
function legend(figure, names, redraw) {
  const shown = new Set(names.map((_, index) => index).slice(0, SHOWN));
  const buttons = names.map((name, index) => {
    const button = element("button", { type: "button", "aria-pressed": shown.has(index) }, swatch(index), name);
    button.onclick = () => {
      if (!shown.delete(index)) shown.add(index);
      button.setAttribute("aria-pressed", shown.has(index));
      redraw();
    };
    return element("li", {}, button);
  });
  find(".legend", figure).replaceChildren(...(names.length > 1 ? buttons : []));
  find(".legend", figure).classList.toggle("long", names.length > SHOWN);
  return shown;
}

function curve(index, x, y, name, more = {}) {
  const { colour: color, dash, marker } = style(index);
  return {
    x, y, mode: "lines+markers", line: { color, dash, width: 2.5 }, marker: { symbol: marker, size: 8, color, maxdisplayed: 12 },
    text: x.map(() => plain(name)), hoverinfo: "text+x+y", connectgaps: false, ...more,
  };
}

function band(index, x, low, high, more = {}) {
  const fillcolor = `${style(index).colour}2a`;
  return { x: [...x, ...x.slice().reverse()], y: [...high, ...low.slice().reverse()], fill: "toself", fillcolor, line: { width: 0 }, mode: "lines", hoverinfo: "skip", ...more };
}

/** Says of the curve with the smallest value, and of that with the largest, what there is to say. */
function extremes(visible, names, value, words) {
  if (!visible.length) return "No curve is shown.";
  const sorted = visible.map(([one]) => one).sort((a, b) => value(a) - value(b));
  const [first, last] = [sorted[0], sorted.at(-1)].map((one) => `${one.label}: ${words(one)}.`);
  return sorted.length > 1 ? `${names[0]}: ${first} ${names[1]}: ${last}` : first;
}

const norm = (name) => name.replace("l", "L");
function radiusPlot() {
  const figure = find("#curves");
  if (!figure) return;
  const kind = (one) => [norm(one.norm), one.scope].filter(Boolean).join(" ");
  const kinds = [...new Set(data.epsilon.map(kind))];
  const choice = element("select", {}, ...kinds.map((name) => element("option", {}, name)));
  if (kinds.length > 1) find(".controls", figure).append(element("label", {}, "Ball", choice));
  let shown, curves;
  const redraw = () => {
    const visible = curves.map((one, index) => [one, index]).filter(([, index]) => shown.has(index));
    const names = curves.map((one) => one.label);
    const traces = visible.map(([one, index]) => band(index, one.epsilon, one.low, one.high));
    traces.push(...visible.map(([one, index]) => curve(index, one.epsilon, one.robust, names[index])));
    const xaxis = axis(`radius of the ball, ${choice.value || kinds[0]}`, { rangemode: "tozero" });
    draw(figure, traces, { xaxis, yaxis: axis("robust accuracy", { tickformat: ".0%", range: [-0.02, 1.02] }), hovermode: "closest" });
    const words = extremes(visible, ["Lowest", "Highest"], (one) => one.robust.at(-1), (one) => `from ${percent(one.robust[0])} at radius 0 to ${percent(one.robust.at(-1))} at ${one.epsilon.at(-1)}`);
    const rows = () => visible.flatMap(([one, index]) => one.epsilon.map((e, at) => [names[index], e, percent(one.robust[at]), percent(one.low[at]), percent(one.high[at])]));
    describe(figure, words, ["curve", "radius", "robust", "from", "to"], rows);
  };
  const choose = () => {
    curves = data.epsilon.filter((one) => kind(one) === (choice.value || kinds[0]));
    shown = legend(figure, curves.map((one) => one.label), redraw);
    redraw();
  };
  choice.onchange = choose;
  choose();
  redraws.push(redraw);
}

function stepsPlot() {
  const figure = find("#progress");
  if (!figure) return;
  const curves = data.steps;
  const names = curves.map((one) => one.label);
  const choices = all("input", figure);
  if (curves.every((one) => one.passes.every((value) => value === null))) find("fieldset", figure).hidden = true;
  const redraw = () => {
    const by = find("input:checked", figure).value;
    const narrow = figure.clientWidth < 640;
    const visible = curves.map((one, index) => [one, index]).filter(([, index]) => shown.has(index));
    const second = { xaxis: "x2", yaxis: "y2" };
    const bands = visible.length <= BANDS ? visible.map(([one, index]) => band(index, one[by], one.loss_low, one.loss_high)) : [];
    const loss = visible.map(([one, index]) => curve(index, one[by], one.loss, names[index]));
    const fooled = visible.map(([one, index]) => curve(index, one[by], one.fooled_so_far, names[index], second));
    const title = by === "step" ? "step" : "passes a sample, forward and backward";
    const [left, right] = narrow ? [{ domain: [0, 1] }, { domain: [0, 1] }] : [{ domain: [0, 0.46] }, { domain: [0.54, 1] }];
    const [top, bottom] = narrow ? [{ domain: [0.58, 1] }, { domain: [0, 0.42] }] : [{}, {}];
    draw(figure, [...bands, ...loss, ...fooled], {
      xaxis: axis(title, left), yaxis: axis("median loss", top), height: narrow ? 640 : 400, hovermode: "closest",
      xaxis2: axis(title, { ...right, anchor: "y2" }), yaxis2: axis("fooled so far", { ...bottom, anchor: "x2", tickformat: ".0%", rangemode: "tozero" }),
    });
    const words = extremes(visible, ["Most", "Fewest"], (one) => -one.fooled_so_far.at(-1), (one) => `${percent(one.fooled_so_far.at(-1))} of the attacked fooled after ${one[by].at(-1)} ${by === "step" ? "steps" : "passes"}`);
    const rows = () => visible.flatMap(([one, index]) => one.step.map((s, at) => [names[index], s, one.passes[at], one.loss[at], one.loss_low[at], one.loss_high[at], percent(one.fooled_so_far[at])]));
    describe(figure, words, ["curve", "step", "passes", "median loss", "quartile from", "to", "fooled so far"], rows);
  };
  const shown = legend(figure, names, redraw);
  choices.forEach((input) => { input.onchange = redraw; });
  redraw();
  redraws.push(redraw);
}

/* The heat map: two options are axes, each other one has a value, or the best over all its values counts. */

function mapPlot() {
  const figure = find("#map");
  if (!figure) return;
  const free = data.options.map((option, index) => ({ ...option, index })).filter((option) => option.axis);
  if (free.length < 2) { figure.hidden = true; return; }
  const ranked = [...free].sort((a, b) => a.asks - b.asks || b.values.length - a.values.length);
  const chosen = { x: ranked[0].index, y: ranked[1].index };
  const slice = data.options.map((option) => (option.asks ? 0 : -1));
  const controls = find(".controls", figure);

  const select = (name, entries, value, change) => {
    const made = element("select", { "aria-label": name }, ...entries.map(([key, words]) => element("option", { value: key }, words)));
    made.value = value;
    made.onchange = () => { change(Number(made.value)); arrange(); find(`[aria-label="${CSS.escape(name)}"]`, controls)?.focus(); };
    return element("label", {}, name, made);
  };
  const arrange = () => {
    const options = free.map((option) => [option.index, option.name]);
    const axes = ["x", "y"].map((part) => select(part === "x" ? "across" : "down", options, chosen[part], (index) => {
      const other = part === "x" ? "y" : "x";
      if (chosen[other] === index) chosen[other] = chosen[part];
      chosen[part] = index;
    }));
    const others = data.options.flatMap((option, index) => {
      if (index === chosen.x || index === chosen.y) return [];
      const values = option.values.map((value, at) => [at, value]);
      if (!option.asks) values.unshift([-1, "best of all"]);
      return [select(option.name, values, slice[index], (value) => { slice[index] = value; })];
    });
    controls.replaceChildren(...axes, ...others);
    redraw();
  };
  const redraw = () => {
    const [x, y] = [data.options[chosen.x], data.options[chosen.y]];
    const fits = (job) => slice.every((value, index) => index === chosen.x || index === chosen.y || value < 0 || job.at[index] === value);
    const cells = y.values.map(() => x.values.map(() => null));
    for (const job of data.jobs.filter(fits)) {
      const row = cells[job.at[chosen.y]];
      const best = row[job.at[chosen.x]];
      if (best === null || job.robust < best.robust) row[job.at[chosen.x]] = job;
    }
    drawMap(figure, x, y, cells);
    const known = cells.flat().filter((cell) => cell !== null).sort((a, b) => a.robust - b.robust);
    const words = known.length ? `${known.length} of ${cells.flat().length} cells are known. Smallest: ${percent(known[0].robust)}, ${known[0].name}. Largest: ${percent(known.at(-1).robust)}, ${known.at(-1).name}.` : "No job has these settings.";
    const rows = () => cells.map((row, at) => [y.values[at], ...row.map((cell) => (cell ? percent(cell.robust) : "–"))]);
    describe(figure, words, [`${y.name} \\ ${x.name}`, ...x.values], rows);
  };
  arrange();
  redraws.push(redraw);
}

function drawMap(figure, x, y, cells) {
  const ticks = (option) => ({ tickvals: option.values.map((_, at) => at), ticktext: option.values.map(plain), showgrid: false, zeroline: false, type: "linear", range: [-0.5, option.values.length - 0.5] });
  const small = x.values.length * y.values.length <= 150;
  const rows = ticks(y);
  const robust = cells.flat().filter((cell) => cell !== null).map((cell) => cell.robust);
  draw(figure, [{
    type: "heatmap", z: cells.map((row) => row.map((cell) => cell && cell.robust)), x: ticks(x).tickvals, y: rows.tickvals, xgap: 2, ygap: 2,
    zmin: Math.max(0, Math.min(...robust) - 0.005), zmax: Math.min(1, Math.max(...robust) + 0.005), colorscale: CIVIDIS.map((tone, at) => [at / (CIVIDIS.length - 1), tone]), colorbar: { tickformat: ".0%", thickness: 14, outlinewidth: 0, title: { text: "robust", side: "right" } },
    text: cells.map((row) => row.map((cell) => (cell ? (100 * cell.robust).toFixed(1) : ""))), texttemplate: small ? "%{text}" : "",
    hovertext: cells.map((row) => row.map((cell) => (cell ? `${percent(cell.robust)}<br>${plain(cell.name)}` : "no job"))), hoverinfo: "text", hoverongaps: false,
  }], { xaxis: axis(x.name, ticks(x)), yaxis: axis(y.name, { ...rows, range: [y.values.length - 0.5, -0.5] }), height: Math.min(640, Math.max(260, 130 + 52 * y.values.length)) });
}

/* Parallel coordinates, drawn as lines: Plotly's own need WebGL and compile code, which the page's policy forbids. */

function parallelPlot() {
  const figure = find("#parallel");
  if (!figure) return;
  const robust = data.jobs.map((job) => job.robust);
  const [least, most] = [Math.min(...robust), Math.max(...robust)];
  const ranked = [...data.jobs].sort((a, b) => a.robust - b.robust);
  const fan = new Map(ranked.map((job, rank) => [job, ranked.length > 1 ? 0.05 * (rank / (ranked.length - 1) - 0.5) : 0]));
  const height = (job, index) => { // jobs of one value lie side by side, the strongest lowest
    if (index === data.options.length) return most > least ? (job.robust - least) / (most - least) : 0.5;
    const count = data.options[index].values.length;
    return (count > 1 ? job.at[index] / (count - 1) : 0.5) + fan.get(job);
  };
  const places = [...data.options.keys(), data.options.length];
  const best = ranked[0];
  const line = (jobs, color, width) => ({
    x: jobs.flatMap(() => [...places, null]), y: jobs.flatMap((job) => [...places.map((index) => height(job, index)), null]),
    text: jobs.flatMap((job) => [...places.map(() => `${plain(job.name)}<br>${percent(job.robust)}`), null]),
    mode: "lines", line: { color, width }, hoverinfo: "text", connectgaps: false,
  });
  const redraw = () => {
    const tone = (job) => Math.round((TONES - 1) * (most > least ? (job.robust - least) / (most - least) : 0));
    const traces = [...Array(TONES).keys()].reverse().map((at) => line(data.jobs.filter((job) => tone(job) === at), mixed("c0", "wrong", at / (TONES - 1)), 1.5));
    traces.push(line([best], colour("c1"), 4));
    const note = (x, y, text, more = {}) => ({ x, y, text, showarrow: false, xanchor: "left", xshift: 7, font: { size: 12 }, bgcolor: colour("paper"), borderpad: 1, opacity: 0.92, ...more });
    const values = data.options.flatMap((option, index) => {
      const every = Math.ceil(option.values.length / 12);
      const kept = option.values.map((value, at) => [value, at]).filter(([, at]) => at % every === 0 || at === option.values.length - 1);
      return kept.map(([value, at]) => note(index, option.values.length > 1 ? at / (option.values.length - 1) : 0.5, plain(value)));
    });
    const ends = most > least ? [[0, least], [0.5, (least + most) / 2], [1, most]] : [[0.5, least]];
    values.push(...ends.map(([y, share]) => note(data.options.length, y, percent(share))));
    const shapes = places.map((x) => ({ type: "line", x0: x, x1: x, y0: 0, y1: 1, line: { color: colour("edge"), width: 1 } }));
    const names = [...data.options.map((option) => option.name), "robust"];
    draw(figure, traces, {
      xaxis: axis("", { tickvals: places, ticktext: names.map(plain), showgrid: false, zeroline: false, range: [-0.15, places.length - 0.45], side: "top" }),
      yaxis: { visible: false, range: [-0.06, 1.06], fixedrange: true }, annotations: values, shapes, hovermode: "closest", height: 420,
    });
    const rows = () => data.jobs.map((job) => [...job.at.map((at, index) => data.options[index].values[at]), percent(job.robust)]);
    describe(figure, `${data.jobs.length} jobs. The thick line has the smallest: ${best.name}, ${percent(best.robust)}.`, names, rows);
  };
  find(".canvas", figure).style.minWidth = `${places.length * 7}rem`;
  redraw();
  redraws.push(redraw);
}
