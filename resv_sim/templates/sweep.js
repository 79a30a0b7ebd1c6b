"use strict";
// Draws the points of a sweep as SVG. No library; the data stand in the element #data.
const data = JSON.parse(document.getElementById("data").textContent);
const axisNames = data.axes.map((a) => a.name);
const columnNames = data.columns.map((c) => c.name);
const at = Object.fromEntries([...axisNames, ...columnNames].map((name, i) => [name, i + 2]));
const better = Object.fromEntries(data.columns.map((c) => [c.name, c.better]));
const $ = (id) => document.getElementById(id);
const PALETTE = ["#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9", "#B0A000", "#777777"];

function short(value) {
  if (value === null) return "none";
  if (typeof value !== "number") return String(value);
  if (Number.isInteger(value) && Math.abs(value) < 1e6) return String(value);
  const size = Math.abs(value);
  return size >= 1e-3 && size < 1e6 ? String(Number(value.toPrecision(4))) : value.toExponential(2);
}

function el(name, attributes, parent, text) {
  const node = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
  if (text !== undefined) node.textContent = text;
  parent.appendChild(node);
  return node;
}

// -- filter ---------------------------------------------------------------------------------------------

const COMPARE = {
  ">=": (a, b) => a >= b, "<=": (a, b) => a <= b, ">": (a, b) => a > b, "<": (a, b) => a < b,
  "=": (a, b) => a === b, "!=": (a, b) => a !== b,
};

function readFilter(text) {
  const conditions = [];
  for (const part of text.split(",").map((s) => s.trim()).filter(Boolean)) {
    const found = /^(\w+)\s*(>=|<=|!=|=|>|<)\s*(.+)$/.exec(part);
    if (!found) throw new Error(`'${part}' is not NAME >= VALUE`);
    const [, name, operator, value] = found;
    if (!(name in at)) throw new Error(`no axis or column '${name}'`);
    conditions.push({ name, operator, value: value.trim() });
  }
  return conditions;
}

function keeps(point, conditions) {
  return conditions.every(({ name, operator, value }) => {
    const own = point[at[name]];
    if (typeof own === "number") return COMPARE[operator](own, Number(value));
    return COMPARE[operator](String(own === null ? "" : own), value);
  });
}

// -- scales ---------------------------------------------------------------------------------------------

function scaleOf(name, points, low, high) {
  const values = points.map((p) => p[at[name]]).filter((v) => v !== null);
  const axis = data.axes.find((a) => a.name === name);
  if (axis && axis.values) {
    const order = axis.values.map(String);
    const step = (high - low) / order.length;
    return {
      // Equal values are spread a little, the same way every time.
      place: (p) => low + step * (order.indexOf(String(p[at[name]])) + 0.5 + 0.5 * (((p[0] * 0.618034) % 1) - 0.5)),
      ticks: order.map((label, i) => ({ at: low + step * (i + 0.5), label: short(axis.values[i]) })),
    };
  }
  let from = Math.min(...values), to = Math.max(...values);
  if (!values.length) { from = 0; to = 1; }
  const pad = (to - from || Math.abs(to) || 1) * 0.05;
  from -= pad; to += pad;
  const place = (v) => low + ((v - from) / (to - from)) * (high - low);
  const rough = (to - from) / 5;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((m) => m * power).find((s) => s >= rough);
  const ticks = [];
  for (let i = Math.ceil(from / step); i * step <= to; i++) {
    const value = Number((i * step).toPrecision(10));
    ticks.push({ at: place(value), label: short(value) });
  }
  return { place: (p) => place(p[at[name]]), ticks };
}

const VIRIDIS = [[68, 1, 84], [59, 82, 139], [33, 145, 140], [94, 201, 98], [253, 231, 37]];

function colouring(name, points) {
  const axis = data.axes.find((a) => a.name === name);
  if (axis && axis.values && axis.values.length <= PALETTE.length) {
    const order = axis.values.map(String);
    return {
      of: (p) => PALETTE[order.indexOf(String(p[at[name]]))],
      legend: axis.values.map((v, i) => ({ colour: PALETTE[i], label: short(v) })),
    };
  }
  const values = points.map((p) => p[at[name]]).filter((v) => typeof v === "number");
  const low = Math.min(...values), high = Math.max(...values);
  const ramp = (share) => {
    const x = Math.min(0.9999, Math.max(0, share)) * (VIRIDIS.length - 1);
    const i = Math.floor(x);
    return `rgb(${VIRIDIS[i].map((c, k) => Math.round(c + (x - i) * (VIRIDIS[i + 1][k] - c))).join(",")})`;
  };
  const share = (v) => (high > low ? (v - low) / (high - low) : 0.5);
  return {
    of: (p) => (typeof p[at[name]] === "number" ? ramp(share(p[at[name]])) : "#999"),
    legend: values.length ? [0, 0.5, 1].map((s) => ({ colour: ramp(s), label: short(low + s * (high - low)) })) : [],
  };
}

function frontOf(points, x, y) {
  if (!(x in better) || !(y in better)) return [];
  const sign = (name) => (better[name] === "minimize" ? 1 : -1);
  const cost = (p) => [sign(x) * p[at[x]], sign(y) * p[at[y]]];
  const sorted = points.map((p) => [p, ...cost(p)]).sort((a, b) => a[1] - b[1] || a[2] - b[2]);
  const out = [];
  let least = Infinity;
  for (const [p, , second] of sorted) {
    if (second < least) { out.push(p); least = second; }
  }
  return out;
}

// -- drawing --------------------------------------------------------------------------------------------

let chosen = null;

function draw() {
  const x = $("x").value, y = $("y").value, colour = $("colour").value;
  let conditions;
  try {
    conditions = readFilter($("filter").value);
    $("filter").classList.remove("wrong");
  } catch (error) {
    $("filter").classList.add("wrong");
    $("status").textContent = error.message;
    return;
  }
  const shown = data.points.filter((p) => keeps(p, conditions) && p[at[x]] !== null && p[at[y]] !== null);
  $("status").textContent = `${shown.length} of ${data.points.length} points`;
  const width = Math.max(300, $("plot").clientWidth), height = Math.min(560, Math.max(340, width * 0.6));
  const svg = $("plot").querySelector("svg");
  svg.replaceChildren();
  svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
  svg.setAttribute("height", height);
  const box = { left: 64, right: width - 14, top: 34, bottom: height - 46 };
  const across = scaleOf(x, shown, box.left, box.right), up = scaleOf(y, shown, box.bottom, box.top);
  drawScales(svg, box, across, up, x, y);
  const paint = colouring(colour, data.points);
  drawLegend(svg, box, paint.legend, colour);
  const front = frontOf(shown, x, y);
  const path = front.map((p) => `${across.place(p)},${up.place(p)}`).join(" ");
  if (front.length > 1) el("polyline", { points: path, fill: "none", stroke: "#000", "stroke-width": 1.2 }, svg);
  const onFront = new Set(front.map((p) => p[0]));
  for (const p of shown) {
    const dot = el("circle", {
      cx: across.place(p), cy: up.place(p), r: onFront.has(p[0]) ? 6 : 4.5, fill: paint.of(p), "fill-opacity": 0.8,
      stroke: p[0] === chosen || onFront.has(p[0]) ? "#000" : "#fff", "stroke-width": p[0] === chosen ? 2.5 : 0.7,
      "data-point": p[0],
    }, svg);
    dot.addEventListener("mouseenter", () => showTip(p, across.place(p), up.place(p), width));
    dot.addEventListener("mouseleave", () => { $("tip").hidden = true; });
    dot.addEventListener("click", () => choose(p));
  }
  const star = shown.find((p) => p[0] === data.published);
  if (star) drawStar(svg, across.place(star), up.place(star));
}

function drawScales(svg, box, across, up, x, y) {
  const grey = { stroke: "#e4e4e4" };
  for (const tick of across.ticks) {
    el("line", { x1: tick.at, x2: tick.at, y1: box.top, y2: box.bottom, ...grey }, svg);
    el("text", { x: tick.at, y: box.bottom + 17, "text-anchor": "middle", "font-size": 12, fill: "#444" }, svg, tick.label);
  }
  for (const tick of up.ticks) {
    el("line", { x1: box.left, x2: box.right, y1: tick.at, y2: tick.at, ...grey }, svg);
    el("text", { x: box.left - 6, y: tick.at + 4, "text-anchor": "end", "font-size": 12, fill: "#444" }, svg, tick.label);
  }
  const middle = (box.top + box.bottom) / 2;
  el("text", { x: (box.left + box.right) / 2, y: box.bottom + 38, "text-anchor": "middle", "font-size": 13 }, svg, x);
  el("text", { x: 13, y: middle, "text-anchor": "middle", "font-size": 13, transform: `rotate(-90 13 ${middle})` }, svg, y);
}

function drawLegend(svg, box, entries, name) {
  let x = box.left;
  el("text", { x, y: 18, "font-size": 12, fill: "#444" }, svg, `${name}:`);
  x += 8 + 6.8 * (name.length + 1);
  for (const { colour, label } of entries) {
    if (x + 18 + 7 * label.length > box.right) break;
    el("circle", { cx: x + 5, cy: 14, r: 5, fill: colour }, svg);
    el("text", { x: x + 14, y: 18, "font-size": 12, fill: "#444" }, svg, label);
    x += 26 + 7 * label.length;
  }
}

function drawStar(svg, x, y) {
  const corners = [...Array(10).keys()].map((i) => {
    const r = i % 2 ? 4.5 : 11, angle = (Math.PI * i) / 5 - Math.PI / 2;
    return `${x + r * Math.cos(angle)},${y + r * Math.sin(angle)}`;
  });
  el("polygon", { points: corners.join(" "), fill: "#D55E00", stroke: "#000", "pointer-events": "none" }, svg);
  const anchor = x > 200 ? "end" : "start";
  el("text", { x: x + (x > 200 ? -14 : 14), y: y - 8, "text-anchor": anchor, "font-size": 12, "font-weight": 600,
    "paint-order": "stroke", stroke: "#fff", "stroke-width": 3 }, svg, "V-Rex as published");
}

function showTip(point, x, y, width) {
  const wanted = [...axisNames, ...new Set([$("x").value, $("y").value, $("colour").value, ...data.first])];
  const tip = $("tip");
  tip.replaceChildren();
  const title = document.createElement("b");
  title.textContent = `point ${point[0]}`;
  tip.append(title);
  for (const name of new Set(wanted)) {
    const line = document.createElement("div");
    line.textContent = `${name}: ${short(point[at[name]])}`;
    tip.append(line);
  }
  tip.hidden = false;
  tip.style.left = `${Math.max(0, Math.min(x + 12, width - tip.offsetWidth - 4))}px`;
  tip.style.top = `${Math.max(0, y - tip.offsetHeight - 10)}px`;
}

function yamlOf(point) {
  let text = data.yaml.replace("@point@", String(point[0]));
  for (const axis of data.axes) {
    const own = point[at[axis.name]];
    const several = data.settings[axis.name];
    const values = several ? several[axis.values.map(String).indexOf(String(own))] : [own];
    values.forEach((value, k) => { text = text.replace(`'@${axis.name}:${k}@'`, JSON.stringify(value)); });
  }
  return text;
}

function choose(point) {
  chosen = point[0];
  $("title").textContent = `Point ${point[0]}`;
  const table = $("numbers");
  table.replaceChildren();
  for (const name of [...axisNames, ...columnNames]) {
    const row = table.insertRow();
    row.insertCell().textContent = name;
    row.insertCell().textContent = short(point[at[name]]);
  }
  $("yaml").textContent = yamlOf(point);
  $("chosen").hidden = false;
  draw();
}

function start() {
  const fill = (id, names, value) => {
    for (const name of names) $(id).add(new Option(name, name));
    $(id).value = value;
    $(id).addEventListener("change", draw);
  };
  const second = columnNames.find((name) => name !== data.first[0]) || data.first[0];
  fill("x", [...columnNames, ...axisNames], data.first[0]);
  fill("y", [...columnNames, ...axisNames], data.first[1] || second);
  fill("colour", [...axisNames, ...columnNames], axisNames[0]);
  $("filter").value = data.constraints.join(", ");
  $("filter").addEventListener("input", draw);
  window.addEventListener("resize", draw);
  draw();
}

start();
