"use strict";
// Reads the embedded groups. What a model wrote only ever becomes the text of a node, never markup.
const DATA = JSON.parse(document.getElementById("data").textContent);
const WRITERS = {injected: "injected by the correction", reference: "from the reference solution"};
const state = {recording: 0, other: 1, group: 0, response: 0, line: 0, view: "group", heat: false, all: false, marks: new Set(), problem: "", text: ""};

function make(name, attributes = {}, ...children) {
  const node = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (key.startsWith("on")) node.addEventListener(key.slice(2), value);
    else if (value !== null && value !== false) node.setAttribute(key, value);
  }
  node.append(...children.filter((child) => child !== null));
  return node;
}

const number = (x, digits = 2) => (x === null || x === undefined ? "–" : x.toFixed(digits).replace("-", "−"));
const short = (x) => (x === null || x === undefined ? "–" : String(+x.toFixed(3)).replace("-", "−"));
const trained = (response) => response.after ?? response.before;
const textOf = (version) => (version.pieces ?? []).map((piece) => piece[1]).join("");
const recording = () => DATA.recordings[state.recording];
const groups = () => recording().groups;
const group = () => groups()[state.group];

// Which groups pass the filters

function passes(g) {
  if ([...state.marks].some((mark) => !g.marks.includes(mark))) return false;
  if (state.problem && !g.problem.includes(state.problem)) return false;
  const wanted = state.text.toLowerCase();
  const texts = () => [g.question ?? "", ...g.responses.flatMap((r) => [textOf(r.before), r.after ? textOf(r.after) : ""])];
  return !wanted || texts().some((text) => text.toLowerCase().includes(wanted));
}

const known = {key: "", list: []};
function shown() {
  const key = JSON.stringify([state.recording, [...state.marks], state.problem, state.text]);
  if (key !== known.key) Object.assign(known, {key, list: groups().flatMap((g, i) => (passes(g) ? [i] : []))});
  return known.list;
}

function step(by) {
  const list = shown();
  const next = by > 0 ? list.find((i) => i > state.group) : list.findLast((i) => i < state.group);
  if (next !== undefined) go(next);
}

function stepSection(by) {
  const sections = recording().embedded, at = sections.indexOf(group().section) + by;
  if (at < 0 || at >= sections.length) return;
  const place = groups().slice(0, state.group).filter((g) => g.section === group().section).length;
  const there = groups().flatMap((g, i) => (g.section === sections[at] ? [i] : []));
  const passing = there.filter((i) => passes(groups()[i]));
  go((passing.length ? passing : there)[Math.min(place, (passing.length ? passing : there).length - 1)]);
}

function go(i) {
  Object.assign(state, {group: i, response: Math.min(state.response, groups()[i].responses.length - 1)});
  if (state.view === "training") state.view = "group";
  draw();
}

function filtered() {
  const list = shown();
  if (list.length && !list.includes(state.group)) state.group = list.find((i) => i > state.group) ?? list[0];
  state.response = 0;
  draw();
}

// The parts of the page

function tokens(version) {
  if (version.pieces === null) return [make("em", {}, "the text was dropped (callbacks.rollouts.keep_gb)")];
  if (!state.heat || !version.characters || !version.entropies) {
    return version.pieces.map(([by, text]) => make("span", {class: by, title: WRITERS[by] ?? null}, text));
  }
  const text = textOf(version), writers = version.pieces.flatMap(([by, piece]) => Array(Array.from(piece).length).fill(by));
  const letters = Array.from(text), nodes = [];  // Python counts characters, JavaScript UTF-16 units
  let at = 0;
  version.characters.forEach((length, i) => {
    if (!length) return;
    const by = writers[at], nats = version.entropies[i] === null ? null : version.entropies[i] / 100, part = letters.slice(at, at + length).join("");
    at += length;
    nodes.push(by === "sampled"
      ? make("span", {...hot(nats), title: `${number(nats)} nats`}, part)
      : make("span", {class: by, title: WRITERS[by]}, part));
  });
  return nodes;
}

// Tokens that the policy was sure of stand on the page's own ground.
const heat = (nats) => Math.round(100 * Math.sqrt(Math.min(nats / 3, 1)));
const hot = (nats) => (heat(nats) < 15 ? {} : {class: "hot", style: `--h:${heat(nats)}`});

function verdict(version) {
  if (version.correct === null) return "–";
  return make("span", {class: version.correct ? "ok" : "no"}, version.correct ? "✓ right" : "✗ wrong");
}

function change(of, response) {
  const before = of(response.before), after = response.after ? of(response.after) : before;
  const same = typeof before === "string" && before === after;
  return response.after && !same ? [before, " → ", after] : [before];
}

// On a phone the texts stand under their own row, elsewhere under the table.
const NARROW = matchMedia("(max-width: 760px)");
NARROW.addEventListener("change", () => draw());

function table(g, chosen, choose, texts) {
  const parts = Object.keys(g.responses[0].before.parts), has = (of) => g.responses.some((r) => of(r));
  const columns = [
    ["", (r) => [String(r.row)], "left"],
    ["verdict", (r) => (r.after && r.after.correct !== r.before.correct ? [verdict(r.before), " → ", verdict(r.after)] : [verdict(r.before)]), "left"],
    ["answer", (r) => change((v) => v.answer ?? "none", r), "left answer"],
    ...(has((r) => r.before.reward !== null) ? [["reward", (r) => change((v) => short(v.reward), r)]] : []),
    ...parts.map((part) => [part, (r) => change((v) => short(v.parts[part]), r)]),
    ...(has((r) => r.base !== null) ? [[has((r) => r.multiplier !== null) ? "before EDA" : "before entropies", (r) => [number(r.base)]]] : []),
    ...(has((r) => r.multiplier !== null) ? [["multiplier", (r) => [number(r.multiplier) + (r.clamped ? " ⊤ clamped" : "")]]] : []),
    ...(has((r) => r.advantage !== null) ? [["advantage", (r) => [number(r.advantage)]]] : []),
    ["branch", (r) => [r.branch || "–"], "left"],
    ["tokens", (r) => change((v) => String(v.tokens) + (v.finish_reason === "length" ? " cut" : ""), r)],
  ];
  const head = make("tr", {}, ...columns.map(([title, , kind]) => make("th", {scope: "col", class: kind ?? null}, title)));
  const rows = g.responses.flatMap((r, i) => [
    make("tr", {"aria-selected": String(i === chosen), onclick: () => choose(i)},
      ...columns.map(([title, of, kind]) => make("td", {"data-label": title || null, class: kind ?? null}, ...of(r)))),
    ...(i === chosen && NARROW.matches ? [make("tr", {class: "texts"}, make("td", {colspan: columns.length}, texts))] : []),
  ]);
  return make("table", {class: "cards"}, make("thead", {}, head), make("tbody", {}, ...rows));
}

function version(title, v) {
  const finish = v.finish_reason === "length" ? ", cut at the length limit" : "";
  const unparsed = v.unparsed ? ", no answer that the grader can read" : "";
  return make("section", {}, make("h2", {}, title, make("span", {class: "soft"}, ` ${v.tokens} tokens${finish}${unparsed}`)),
    make("div", {class: "text", tabindex: "0"}, ...tokens(v)));
}

function question(g) {
  const title = (name) => DATA.filters.find((filter) => filter.name === name).title;
  const facts = [make("strong", {}, g.problem), make("span", {}, `gold ${g.answers.join(" | ") || "–"}`),
    ...g.marks.map((mark) => make("span", {class: "mark"}, title(mark)))];
  const replaced = g.replaced ? make("p", {class: "soft"}, `a replay put ${g.replaced[0]} in its place: ${g.replaced[1]}`) : null;
  return make("div", {}, make("div", {class: "facts"}, ...facts), make("div", {class: "question"}, g.question ?? "–"), replaced);
}

function panel(g, chosen, choose) {
  const written = (r) => make("div", {class: "panes"}, version(`response ${r.row} as sampled`, r.before),
    r.after ? version(`response ${r.row} after correction (${r.branch || "replay"})`, r.after) : null);
  const texts = make("div", {}, ...(state.all ? g.responses : [g.responses[chosen]]).map(written));
  return make("div", {class: "panel"}, question(g), table(g, chosen, choose, texts), NARROW.matches ? null : texts);
}

function legend() {
  const spans = [make("span", {}, "sampled by the policy"), ...Object.entries(WRITERS).map(([by, title]) => make("span", {class: by}, title))];
  const nats = [0, 0.1, 0.5, 1, 2, 3].map((x) => make("span", hot(x), x === 3 ? "3+ nats" : String(x)));
  return make("div", {class: "legend"}, ...spans, ...(state.heat ? ["entropy ", ...nats] : []));
}

const choose = (i) => { state.response = i; draw(); };

function beside() {
  const g = group(), there = DATA.recordings[state.other], same = there.groups.filter((o) => o.problem === g.problem);
  const nearest = (a, b) => Math.abs(a.section - g.section) - Math.abs(b.section - g.section);
  const found = same.find((o) => o.section === g.section) ?? (recording().kind === "run" ? same.toSorted(nearest)[0] : same[0]);
  const titled = (name, at, node) => make("div", {}, make("h2", {}, name, make("span", {class: "soft"}, ` ${at}`)), node);
  const right = found ? panel(found, Math.min(state.response, found.responses.length - 1), choose)
    : make("p", {}, "This page has no group of this problem in that run.");
  const at = (o) => `${recording().section_name} ${o.section}`;
  return make("div", {class: "panes"}, titled(recording().name, at(g), panel(g, state.response, choose)),
    titled(there.name, found ? at(found) : "", right));
}

function ofProblem() {
  return groups().flatMap((g, i) => (g.problem === group().problem ? [i] : []));
}

function counted(names) {
  const counts = new Map();
  for (const name of names) counts.set(name, (counts.get(name) ?? 0) + 1);
  return [...counts].map(([name, count]) => `${count} ${name}`).join(", ");
}

function training() {
  const lines = ofProblem(), share = (g, of) => `${g.responses.filter((r) => of(r).correct).length} of ${g.responses.length}`;
  const mean = (list) => (list.some((x) => x === null) ? null : list.reduce((a, b) => a + b, 0) / list.length);
  const columns = [
    [recording().section_name, (g) => String(g.section)],
    ["right as sampled", (g) => share(g, (r) => r.before)],
    ["right after correction", (g) => share(g, trained)],
    ["mean reward", (g) => short(mean(g.responses.map((r) => r.before.reward)))],
    ["mean tokens", (g) => number(mean(g.responses.map((r) => r.before.tokens)), 1)],
    ["largest |advantage|", (g) => number(g.responses.some((r) => r.advantage !== null) ? Math.max(...g.responses.map((r) => Math.abs(r.advantage ?? 0))) : null)],
    ["branches", (g) => counted(g.responses.map((r) => r.branch).filter(Boolean)) || "–"],
  ];
  const head = make("tr", {}, ...columns.map(([title]) => make("th", {scope: "col"}, title)));
  const rows = lines.map((i, line) => make("tr", {"aria-selected": String(line === state.line), onclick: () => go(i)},
    ...columns.map(([title, of]) => make("td", {"data-label": title}, of(groups()[i])))));
  return make("div", {class: "panel"}, question(group()), make("table", {class: "cards"}, make("thead", {}, head), make("tbody", {}, ...rows)));
}

function where() {
  const list = shown(), place = list.indexOf(state.group) + 1, r = recording();
  const button = (label, title, action) => make("button", {title, "aria-label": title, onclick: action}, label);
  const names = DATA.recordings.map((other, i) => make("option", {value: i, ...(i === state.recording ? {selected: ""} : {})}, other.name));
  const chooser = names.length > 1 ? make("select", {"aria-label": "run", onchange: (event) => pick(+event.target.value)}, ...names) : make("strong", {}, r.name);
  return [chooser, button("[", `${r.section_name} before`, () => stepSection(-1)), make("span", {}, `${r.section_name} `, make("strong", {}, String(group().section))),
    button("]", `next ${r.section_name}`, () => stepSection(1)), button("←", "group before", () => step(-1)),
    make("span", {}, "group ", make("strong", {}, place ? `${place} of ${list.length}` : `– of ${list.length}`)), button("→", "next group", () => step(1)),
    make("button", {"aria-pressed": String(state.all), onclick: ACTIONS.all}, "all texts ", make("kbd", {}, "a")),
    make("button", {"aria-pressed": String(state.heat), onclick: ACTIONS.heat}, "entropy ", make("kbd", {}, "e")),
    make("button", {"aria-pressed": String(state.view === "training"), onclick: ACTIONS.training}, "through training ", make("kbd", {}, "t")),
    ...(names.length > 1 ? [make("button", {"aria-pressed": String(state.view === "compare"), onclick: ACTIONS.compare}, "side by side ", make("kbd", {}, "c"))] : []),
    make("button", {onclick: ACTIONS.help}, "keys ", make("kbd", {}, "?"))];
}

function filters() {
  const field = (name, label, key) => make("label", {}, label, make("kbd", {}, key), make("input", {id: name, value: state[name], type: "search",
    oninput: (event) => { state[name] = event.target.value; filtered(); }}));
  return [...DATA.filters.map((f) => make("button", {"aria-pressed": String(state.marks.has(f.name)), title: f.meaning, onclick: () => toggle(f.name)}, `${f.title} `, make("kbd", {}, f.key))),
    field("text", "text ", "/"), field("problem", "problem ", "i")];
}

function toggle(mark) {
  if (!state.marks.delete(mark)) state.marks.add(mark);
  filtered();
}

function pick(i) {
  const there = DATA.recordings[i].groups, at = there.findIndex((g) => g.problem === group().problem && g.section === group().section);
  const section = there.findIndex((g) => g.section === group().section);
  Object.assign(state, {recording: i, group: Math.max(at >= 0 ? at : section, 0), response: 0});
  if (state.other === i) state.other = (i + 1) % DATA.recordings.length;
  filtered();
}

function draw() {
  const focused = document.activeElement?.id, caret = document.activeElement?.selectionStart;
  const controls = () => [...document.querySelectorAll("header button, header select")];
  const control = controls().indexOf(document.activeElement);
  document.getElementById("where").replaceChildren(...where());
  document.getElementById("filters").replaceChildren(...filters());
  const nothing = () => make("p", {}, "No group passes these filters. ", make("button", {onclick: ACTIONS.clear}, "no filter ", make("kbd", {}, "0")));
  const views = {group: () => panel(group(), state.response, choose), training, compare: beside};
  document.getElementById("main").replaceChildren(shown().length ? views[state.view]() : nothing());
  document.getElementById("foot").replaceChildren(legend(), make("p", {}, recording().note));
  if (control >= 0) controls()[control]?.focus();
  if (focused === "text" || focused === "problem") {
    const input = document.getElementById(focused);
    input.focus();
    input.setSelectionRange(caret, caret);
  }
}

// Keys

function move(by) {
  const lines = state.view === "training" ? ofProblem().length : group().responses.length;
  const name = state.view === "training" ? "line" : "response";
  state[name] = Math.min(Math.max(state[name] + by, 0), lines - 1);
  draw();
}

const ACTIONS = {
  next_response: () => move(1),
  previous_response: () => move(-1),
  next_group: () => step(1),
  previous_group: () => step(-1),
  next_section: () => stepSection(1),
  previous_section: () => stepSection(-1),
  all: () => { state.all = !state.all; draw(); },
  heat: () => { state.heat = !state.heat; draw(); },
  training: () => { Object.assign(state, {view: state.view === "training" ? "group" : "training", line: ofProblem().indexOf(state.group)}); draw(); },
  compare: () => { if (DATA.recordings.length > 1) { state.view = state.view === "compare" ? "group" : "compare"; draw(); } },
  next_recording: () => {
    if (state.view !== "compare") { pick((state.recording + 1) % DATA.recordings.length); return; }
    do state.other = (state.other + 1) % DATA.recordings.length; while (state.other === state.recording);
    draw();
  },
  clear: () => { state.marks.clear(); Object.assign(state, {problem: "", text: ""}); draw(); },
  search: () => document.getElementById("text").focus(),
  problem: () => document.getElementById("problem").focus(),
  help: () => document.getElementById("help").showModal(),
};

document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.altKey || event.metaKey) return;
  if (event.target.matches("input")) {
    if (event.key === "Enter" || event.key === "Escape") event.target.blur();
    return;
  }
  if (event.target.matches("select") || document.getElementById("help").open) return;
  if (state.view === "training" && (event.key === "Enter" || event.key === "Escape")) {
    event.preventDefault();
    go(event.key === "Enter" ? ofProblem()[state.line] : state.group);
    return;
  }
  const filter = DATA.filters.find((f) => f.key === event.key);
  const action = filter ? () => toggle(filter.name) : ACTIONS[DATA.keys[event.key]];
  if (action && shown().length + (filter || ["clear", "search", "problem", "help"].includes(DATA.keys[event.key]) ? 1 : 0)) {
    event.preventDefault();
    action();
  }
});

document.getElementById("help").append(make("table", {}, make("tbody", {}, ...DATA.help.map(([key, meaning]) =>
  make("tr", {}, make("td", {}, make("kbd", {}, key)), make("td", {}, meaning))))), make("p", {class: "soft"}, "Escape closes this list."));
draw();
