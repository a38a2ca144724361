"use strict";
const root = document.documentElement;
const all = (selector, within = document) => [...within.querySelectorAll(selector)];
function make(name, fields, ...children) {
  const element = Object.assign(document.createElement(name), fields);
  element.append(...children);
  return element;
}

// Theme.
const bar = document.querySelector(".bar");
bar.append(make("button", {
  type: "button", textContent: "Dark / light",
  onclick() { root.dataset.theme = getComputedStyle(root).colorScheme === "dark" ? "light" : "dark"; },
}));

// The section in view.
const links = all("a", bar);
function mark(id) {
  for (const link of links) {
    if (link.hash !== "#" + id) link.removeAttribute("aria-current");
    else {
      link.setAttribute("aria-current", "true");
      bar.scrollLeft = link.offsetLeft - bar.offsetLeft - bar.clientWidth / 2 + link.offsetWidth / 2;
    }
  }
}
const sections = all("main section"), visible = new Set();
const seen = new IntersectionObserver((entries) => {
  for (const entry of entries) visible[entry.isIntersecting ? "add" : "delete"](entry.target);
  const first = sections.find((section) => visible.has(section));
  if (first) mark(first.id);
}, { rootMargin: "-56px 0px -70%" });
sections.forEach((section) => seen.observe(section));

// Tooltips: a mark under the pointer, the mark nearest to a tap, or the next one by arrow key.
const tip = document.body.appendChild(make("div", { id: "tip", hidden: true, role: "tooltip" }));
tip.setAttribute("aria-live", "polite");
for (const cell of all(".grid td[title]")) { cell.dataset.tip = cell.title; cell.removeAttribute("title"); }
function show(element, x, y) {
  tip.hidden = !element;
  if (!element) return;
  tip.textContent = element.dataset.tip;
  const below = y + 14 + tip.offsetHeight < innerHeight;
  tip.style.left = Math.max(4, Math.min(x + 12, innerWidth - tip.offsetWidth - 8)) + "px";
  tip.style.top = (below ? y + 14 : y - 10 - tip.offsetHeight) + "px";
}
function middle(element) {
  const box = element.getBoundingClientRect();
  return [box.left + box.width / 2, box.top + box.height / 2];
}
function nearest(picture, x, y) {
  let best = null, least = 24;
  for (const element of all("[data-tip]", picture)) {
    const [left, top] = middle(element), distance = Math.hypot(left - x, top - y);
    if (distance < least) { least = distance; best = element; }
  }
  return best;
}
document.addEventListener("pointermove", (event) => {
  if (event.pointerType !== "touch") show(event.target.closest?.("[data-tip]"), event.clientX, event.clientY);
});
document.addEventListener("click", (event) => {
  const picture = event.target.closest("svg");
  const element = event.target.closest("[data-tip]") || (picture && nearest(picture, event.clientX, event.clientY));
  show(element, event.clientX, event.clientY);
});
addEventListener("scroll", () => show(null), { passive: true });
function step(picture, by) {
  const marks = all("[data-tip]", picture), now = marks.findIndex((element) => element.classList.contains("at"));
  marks[now]?.classList.remove("at");
  const next = marks[now < 0 && by < 0 ? marks.length - 1 : (now + by + marks.length) % marks.length];
  next.classList.add("at");
  show(next, ...middle(next));
}
function leave(picture) {
  all(".at", picture).forEach((element) => element.classList.remove("at"));
  show(null);
}
for (const picture of all("svg, .grid table")) {
  if (!picture.querySelector("[data-tip]")) continue;
  picture.setAttribute("tabindex", "0");
  picture.addEventListener("blur", () => leave(picture));
  picture.addEventListener("keydown", (event) => {
    const by = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
    if (by) { event.preventDefault(); step(picture, by); } else if (event.key === "Escape") leave(picture);
  });
}

// The name of an arm under the pointer dims the marks of all others.
const dimmed = document.head.appendChild(make("style"));
let alone = "";
document.addEventListener("pointerover", (event) => {
  const named = event.target.closest?.("[data-arm]");
  const arm = named && (!named.closest("svg") || event.target.closest("text")) ? named.dataset.arm : "";
  if (arm === alone) return;
  alone = arm;
  dimmed.textContent = arm && `svg .arm:not([data-arm="${CSS.escape(arm)}"]) { opacity: .18; }`;
});
const chart = document.querySelector("figure svg [data-tip]");
chart?.closest("section").querySelector(".heading").append(
  make("p", { className: "hint", textContent: "Point at a mark for its numbers; at a name to see that backend alone." }));

// Tables: sort, search, copy.
const SIZES = {
  "": 1, s: 1, ms: 1e-3, "µs": 1e-6, us: 1e-6, ns: 1e-9, B: 1, KiB: 1024, MiB: 1024 ** 2, GiB: 1024 ** 3, TiB: 1024 ** 4,
  "%": 0.01, "×": 1, x: 1, k: 1e3, M: 1e6, G: 1e9,
};
const PREFIXES = { k: 1e3, M: 1e6, G: 1e9, T: 1e12, P: 1e15 };
function quantity(text) {
  const match = /^([-+−]?[\d.]+(?:e[-+]?\d+)?)\s*([^\s\d]*)/.exec(text);
  if (!match) return null;
  return parseFloat(match[1].replace("−", "-")) * (SIZES[match[2]] ?? PREFIXES[match[2][0]] ?? 1);
}
// A long text stands whole in the last part of its <details>.
const content = (cell) => {
  const folded = cell.querySelector("details > :last-child");
  if (folded) return folded.textContent.trim();
  return [...cell.childNodes].map((node) => node.textContent.trim()).filter(Boolean).join(" ");
};
function compare(a, b) {
  const x = quantity(a), y = quantity(b);
  return x !== null && y !== null ? x - y : (x === null) - (y === null) || a.localeCompare(b);
}
function sort(table, head, heads, place) {
  const up = head.getAttribute("aria-sort") !== "ascending";
  for (const other of heads) other.removeAttribute("aria-sort");
  head.setAttribute("aria-sort", up ? "ascending" : "descending");
  const full = [], short = [];  // a row whose last cell spans several columns has no value to sort by
  for (const row of table.tBodies[0].rows) {
    (row.cells.length === heads.length ? full : short).push([row, content(row.cells[place] ?? row.cells[0])]);
  }
  full.sort((left, right) => (up ? 1 : -1) * compare(left[1], right[1]));
  table.tBodies[0].append(...[...full, ...short].map(([row]) => row));
}
const markdown = (cells) => "| " + cells.map((text) => text.replaceAll("\\", "\\\\").replaceAll("|", "\\|").replaceAll("\n", " ")).join(" | ") + " |";
// A leading `=` would be a formula in a spreadsheet.
const csv = (cells) => cells.map((text) => '"' + (/^[=+\-@\t\r]/.test(text) && isNaN(parseFloat(text)) ? "'" : "") + text.replaceAll('"', '""') + '"').join(",");
function copied(table, heads, line) {
  const names = heads.map((head) => head.dataset.name);
  const rows = [...table.tBodies[0].rows].filter((row) => !row.hidden).map((row) => {
    const cells = [...row.cells].map(content);
    return [...cells, ...Array(Math.max(0, names.length - cells.length)).fill("")];
  });
  const rule = line === markdown ? ["|" + "---|".repeat(names.length)] : [];
  return [line(names), ...rule, ...rows.map(line)].join("\n");
}
async function copy(text) {
  try { await navigator.clipboard.writeText(text); } catch {
    const area = document.body.appendChild(make("textarea", { value: text }));
    area.select(); document.execCommand("copy"); area.remove();
  }
}
function search(table, tools, unit) {
  const rows = [...table.tBodies[0].rows];
  let texts = null;
  const count = make("span", { className: "note", role: "status" });
  const say = (shown) => { count.textContent = `${shown} of ${rows.length} ${unit}`; };
  const find = make("input", { type: "search", placeholder: "Find: causal 512 flash" });
  find.setAttribute("aria-label", "Find in " + unit);
  find.addEventListener("input", () => {
    texts ??= rows.map((row) => [...row.cells].map((cell) => cell.textContent).join(" ").toLowerCase());
    const words = find.value.toLowerCase().split(/\s+/).filter(Boolean);
    let shown = 0;
    rows.forEach((row, place) => { shown += !(row.hidden = !words.every((word) => texts[place].includes(word))); });
    say(shown);
  });
  say(rows.length);
  tools.append(find, count);
}
for (const table of all(".data")) {
  const block = table.closest(".table"), tools = block.querySelector(".head"), heads = all("[data-name]", table);
  heads.sort((left, right) => left.dataset.place - right.dataset.place);
  if (table.dataset.search) search(table, tools, table.dataset.search);
  heads.forEach((head, place) => {
    if (!head.textContent.trim()) return;  // a column of names without a heading
    // No <button>: Chromium leaves it out where it prints the head of a table again.
    const button = make("span", { tabIndex: 0, onclick: () => sort(table, head, heads, place) }, ...head.childNodes);
    button.setAttribute("role", "button");
    button.addEventListener("keydown", (event) => {
      if (event.key === "Enter" || event.key === " ") { event.preventDefault(); button.click(); }
    });
    head.replaceChildren(button);
  });
  for (const [name, line] of heads.length ? [["Markdown", markdown], ["CSV", csv]] : []) {
    const button = make("button", { type: "button", textContent: name, title: "Copy the rows shown as " + name });
    button.setAttribute("aria-label", `Copy ${block.dataset.heading} as ${name}`);
    button.addEventListener("click", async () => {
      await copy(copied(table, heads, line));
      button.textContent = "Copied";
      setTimeout(() => { button.textContent = name; }, 1500);
    });
    tools.append(button);
  }
}
