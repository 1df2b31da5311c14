"use strict";
// The page of `tymbal label`. What a person does becomes a step; steps wait in `queue`, which the browser keeps, until
// the server says that they are on its disk.

const $ = (selector, inside = document) => inside.querySelector(selector);
const made = (tag, attributes = {}, ...children) => {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name in element && typeof value !== "string") element[name] = value;
    else if (value !== false && value != null) element.setAttribute(name, value);
  }
  element.append(...children);
  return element;
};

let state = { labels: [], ways: {}, hertz: [] }; // what the server said
let pages = []; // of clips, as they were shown
let page = -1; // the shown one
let at = 0; // the chosen clip
let wish = { by: "mixed", label: null, like: null, example: false, check: false };
let queue = [];
let sending = null;
let lost = 0; // tries in a row that nobody answered
let turning = false;

const clips = () => pages[page]?.clips ?? [];
const clip = () => clips()[at];
const address = (path, row) => `/${path}?row=${row}&of=${state.identity}`;
const wait = (milliseconds) => new Promise((done) => setTimeout(done, milliseconds));
const percent = (share) => `${Math.round(100 * share)} %`;

class Refused extends Error {}
async function ask(path, body) {
  const options = body === undefined ? {} : { method: "POST", body: body instanceof Blob ? body : JSON.stringify(body) };
  const answer = await fetch(path, options); // throws where nobody answers
  if (!answer.ok) throw new Refused(await answer.text());
  return answer.headers.get("Content-Type").startsWith("application/json") ? answer.json() : answer.text();
}

// What is said, above the clips and to those who do not see them.
function notice(text, kind = "") {
  $("#notice").textContent = text;
  $("#notice").className = text ? kind || "note" : "";
}
function say(text) { $("#said").textContent = text; }

// The queue of what is not on the server's disk yet.
const kept = () => `tymbal-label-${state.identity}`;
function keep() {
  if (queue.length) localStorage.setItem(kept(), JSON.stringify(queue));
  else localStorage.removeItem(kept());
  const waits = queue.length;
  $("#saved").textContent = !waits ? "All answers are on the disk"
    : lost ? `${waits} ${waits > 1 ? "answers wait" : "answer waits"}: the server does not answer. Kept here, sent again.`
    : `Saving ${waits} …`;
  $("#saved").className = lost && waits ? "lost" : waits ? "saving" : "";
}
function push(step) { queue.push(step); keep(); send(); }
function send() { sending ??= sendAll().finally(() => { sending = null; if (queue.length) send(); }); return sending; }
async function sendAll() {
  while (queue.length) {
    try {
      const part = queue.slice(0, 50);
      const told = await ask("/steps", { identity: state.identity, steps: part });
      lost = 0;
      queue.splice(0, told.done);
      if (told.refused) {
        const [step] = queue.splice(0, 1);
        const refused = clips().find((each) => each.row === step.row);
        if (refused) refused.answer = null;
        notice(`An answer was not taken: ${told.refused}`, "warn");
        draw();
      }
      take(told);
      keep();
      learn();
    } catch (error) {
      if (error instanceof Refused) { notice(error.message, "warn"); await wait(5000); }
      lost += 1;
      keep();
      await wait(Math.min(4000, 250 * 2 ** lost));
    }
  }
}
async function saved() { while (queue.length) await send(); }
addEventListener("beforeunload", (event) => { if (queue.length) event.preventDefault(); });

// What is known, some time after the last answer.
let learning = 0;
function learn() {
  clearTimeout(learning);
  learning = setTimeout(async () => {
    try { $("#knowledge").innerHTML = (await ask("/knowledge")).html; } catch { /* told by the queue */ }
  }, 400);
}
function take(told) {
  const changed = JSON.stringify(told.labels) !== JSON.stringify(state.labels);
  Object.assign(state, { labels: told.labels, answered: told.answered });
  if (changed) drawLabels();
}

// Clips.
async function more(title) {
  if (turning) return;
  turning = true;
  document.body.classList.add("busy");
  try {
    while (true) {
      await saved();
      const skip = pages.flatMap((each) => each.clips.filter((one) => !one.answer).map((one) => one.row));
      const wanted = { ...wish, count: state.count, skip: skip.slice(-5000) };
      try {
        const told = await ask("/clips", wanted);
        take(told);
        if (!told.clips.length) { notice("There is no further clip to ask about.", "good"); return; }
        pages.push({ clips: told.clips, check: wish.check });
        page = pages.length - 1;
        at = 0;
        notice(title ?? heading());
        draw();
        choose(0);
        return;
      } catch (error) {
        if (error instanceof Refused) { notice(error.message, "warn"); return; }
        lost += 1;
        notice("The server does not answer. The next clips come when it does.", "warn");
        await wait(1000);
      }
    }
  } finally {
    turning = false;
    document.body.classList.remove("busy");
  }
}
function heading() {
  if (wish.check) return "Blind check: drawn at random, the model's opinion is not shown. What you say here tells how good it is.";
  if (!state.labels.length) return "No label yet. Press + to name what you hear; or begin with a sound: drop one, or find clips like it.";
  return "";
}
function turn(by) {
  const next = page + by;
  if (next >= pages.length) { more(); return; }
  if (next < 0) return;
  page = next;
  at = 0;
  notice(pages[page].check ? "Blind check: the clips of an earlier page." : "");
  draw();
  choose(0);
}

function draw() {
  const check = pages[page]?.check;
  $("#grid").replaceChildren(...clips().map((each, number) => card(each, number, check)));
  $("#grid").classList.toggle("check", !!check);
  progress();
  mark();
}
function progress() {
  const done = clips().filter((each) => each.answer).length;
  $("#where-in").textContent = `${done} of ${clips().length} · ${state.answered ?? 0} in all`;
}
function card(each, number, check) {
  const area = made("div", { class: "area" },
    made("img", { src: address("picture", each.row), alt: "", loading: number > 8 ? "lazy" : "eager", draggable: "false" }),
    made("span", { class: "run" }));
  $("img", area).addEventListener("error", () => {
    area.classList.add("missing");
    fetch(address("picture", each.row)).then((answer) => answer.text()).then((text) => { area.dataset.why = text; }).catch(() => {});
  });
  const caption = made("div", { class: "caption" },
    made("div", { class: "head" }, made("span", { class: "when" }, each.when),
      ...(each.reason && !check ? [made("span", { class: "reason" }, each.reason)] : [])),
    made("div", { class: "told" }));
  const item = made("li", { class: "clip", tabindex: "-1", "data-number": String(number) }, area, caption);
  item.title = `${each.name}, ${each.start.toFixed(1)} to ${each.end.toFixed(1)} s`;
  listen(area, each, number);
  tell(item, each, check);
  return item;
}
// The answer of a clip, or what the model supposes.
function tell(item, each, check) {
  const told = $(".told", item), answer = each.answer;
  const words = [];
  item.classList.toggle("answered", !!answer);
  if (answer) {
    const names = answer.kind === "labels" ? answer.labels : [answer.kind === "nothing" ? "nothing here" : "unsure"];
    for (const name of names) {
      const place = state.labels.indexOf(name);
      words.push(made("span", { class: `chip ${answer.kind === "labels" ? `k${(place < 0 ? 0 : place) % 10}` : "none"}` }, name));
    }
  } else if (!check) {
    for (const [label, score] of each.scores.slice(0, 2))
      words.push(made("span", { class: "score" }, made("i", { style: `width:${percent(score).replace(" ", "")}` }), `${label} ${percent(score)}`));
  }
  told.replaceChildren(...words);
  const said = answer ? `answered: ${answer.kind === "labels" ? answer.labels.join(", ") : answer.kind}`
    : check ? "no answer" : `${each.reason}, ${each.scores.slice(0, 2).map(([label, score]) => `${label} ${percent(score)}`).join(", ") || "no score"}, no answer`;
  item.setAttribute("aria-label", `Clip ${Number(item.dataset.number) + 1} of ${clips().length}, ${each.when}, ${said}`);
  for (const area of [$(".area", item), ...(clip() === each ? [$("#large .area")] : [])]) if (area) boxes(area, each, check);
}
const item = (number = at) => $(`#grid > [data-number="${number}"]`);
function retell(number = at) { if (item(number)) tell(item(number), clips()[number], pages[page].check); progress(); }

function choose(number, quietly = false) {
  if (!clips().length) return;
  at = Math.min(Math.max(number, 0), clips().length - 1);
  mark();
  if (!$("#large").open) item().focus({ preventScroll: true });
  item().scrollIntoView({ block: "nearest" });
  if ($("#large").open) enlarge();
  if ($("#auto").checked && !quietly) play(true);
  else if (playing !== clip().row) stop();
  suppose();
  ahead();
}
function mark() {
  for (const each of $("#grid").children) {
    const chosen = Number(each.dataset.number) === at;
    each.tabIndex = chosen ? 0 : -1;
    each.toggleAttribute("aria-current", chosen);
  }
  const best = pages[page]?.check ? null : clip()?.scores[0];
  $("#yes").hidden = !best;
  if (best) $("#yes b").textContent = wish.label ?? best[0];
  $("#where").hidden = !clip()?.proposal || !!pages[page]?.check;
  for (const button of $("#labels").querySelectorAll("[data-label]"))
    button.setAttribute("aria-pressed", String(!!clip()?.answer?.labels.includes(button.dataset.label)));
}
// After an answer: the next clip without one, on this page or the next.
async function onward() {
  const open = (number) => clips()[number] && !clips()[number].answer;
  for (let step = 1; step <= clips().length; step += 1)
    if (open((at + step) % clips().length)) { choose((at + step) % clips().length); return; }
  if (page === pages.length - 1) { await wait(150); more(); } else turn(1);
}

// Answers.
const rounded = (value, digits) => (value == null ? null : Number(value.toFixed(digits))); // as the table has it
const part = (box) => ({ start: rounded(box?.start, 3), end: rounded(box?.end, 3), low: rounded(box?.low, 1), high: rounded(box?.high, 1) });
const history = []; // what was answered in this sitting, in order
function answer(kind, labels, { stay = false } = {}) {
  const each = clip();
  if (!each) return;
  if (!state.several) labels = labels.slice(-1);
  const given = { kind, labels, check: !!pages[page].check, ...part(kind === "labels" ? each.box : null) };
  history.push({ page, at, before: each.answer, given });
  each.answer = given;
  state.answered += history.at(-1).before ? 0 : 1;
  push({ row: each.row, ...given });
  if (labels.some((label) => !state.labels.includes(label))) {
    state.labels = [...new Set([...state.labels, ...labels])];
    drawLabels();
  }
  retell();
  mark();
  say(kind === "labels" ? labels.join(", ") : kind === "nothing" ? "nothing here" : "unsure");
  if (!stay) onward();
}
function give(label, also = false) {
  const before = clip()?.answer?.kind === "labels" ? clip().answer.labels : [];
  if (!before.length && !also) { answer("labels", [label]); return; }
  const after = before.includes(label) ? before.filter((one) => one !== label) : [...before, label];
  if (after.length) answer("labels", after, { stay: true });
  else notice("A clip that has an answer keeps one: n says that nothing is there, ⌫ takes the answer back.");
}
function undo() {
  const last = history.pop();
  if (!last) { notice("There is no answer of this sitting to take back."); return; }
  const each = pages[last.page].clips[last.at];
  push({ row: each.row, ...last.given, undo: true });
  each.answer = last.before;
  state.answered -= last.before ? 0 : 1;
  if (page !== last.page) { page = last.page; draw(); }
  choose(last.at, true);
  retell();
  mark();
  say("taken back");
}
function rename() {
  $("#names").replaceChildren(...state.labels.map((label) => made("option", { value: label })));
  $("#name").value = "";
  $("#naming").showModal();
}
for (const dialog of ["#naming", "#keys"]) $(dialog).addEventListener("close", () => item()?.focus({ preventScroll: true }));
$("#naming form").addEventListener("submit", async (event) => {
  const name = $("#name").value.trim();
  if (!name) return;
  if (event.submitter?.value !== "add" && clip()) { give(name); return; }
  try { take(await ask("/label", { name })); } catch (error) { notice(error instanceof Refused ? error.message : "The server does not answer.", "warn"); }
});

// Sound: one player; a line runs over the clip.
const player = $("#player");
let playing = null;
function play(anew = false) {
  const each = clip();
  if (!each) return;
  if (playing === each.row && !anew) { player.paused ? player.play() : player.pause(); return; }
  playing = each.row;
  player.src = address("sound", each.row);
  player.play().catch((error) => {
    if (error.name === "AbortError") return;
    if (error.name === "NotAllowedError") notice("The browser plays sound when you have pressed a key on the page.");
    else ask(address("sound", each.row)).then(() => {}, (why) => notice(`This clip cannot be played: ${why.message}`, "warn"));
  });
}
function stop() { player.pause(); playing = null; }
function ahead() {
  const next = clips()[at + 1];
  if (next) fetch(address("sound", next.row)).catch(() => {});
}
function follow() {
  const share = player.duration ? player.currentTime / player.duration : 0;
  for (const line of document.querySelectorAll(".run")) {
    const here = line.closest("dialog") ? clip() : clips()[Number(line.closest(".clip").dataset.number)];
    line.style.left = playing !== null && here?.row === playing && share > 0 && !player.ended ? `${100 * share}%` : "-9px";
  }
  if (!player.paused) requestAnimationFrame(follow);
}
for (const event of ["play", "pause", "ended", "seeked", "emptied"]) player.addEventListener(event, () => requestAnimationFrame(follow));

// Boxes: where in a clip. A place is a share of the picture, from the left and from below.
const hertzAt = (up) => {
  const edges = state.hertz, place = Math.min(Math.max(up, 0), 1) * (edges.length - 1), low = Math.min(Math.floor(place), edges.length - 2);
  return edges[low] + (place - low) * (edges[low + 1] - edges[low]);
};
const upOf = (hertz) => {
  const edges = state.hertz, above = edges.findIndex((edge) => edge >= hertz);
  if (above <= 0) return above < 0 ? 1 : 0;
  return (above - 1 + (hertz - edges[above - 1]) / (edges[above] - edges[above - 1])) / (edges.length - 1);
};
const places = (box, each) => ({
  left: ((box.start ?? each.start) - each.start) / (each.end - each.start), right: ((box.end ?? each.end) - each.start) / (each.end - each.start),
  bottom: box.low == null ? 0 : upOf(box.low), top: box.high == null ? 1 : upOf(box.high),
});
function boxOf({ left, right, bottom, top }, each) {
  const long = each.end - each.start, wide = right - left > 0.97, tall = top - bottom > 0.95;
  if (wide && tall) return null;
  return {
    start: wide ? null : each.start + left * long, end: wide ? null : each.start + right * long,
    low: tall ? null : hertzAt(bottom), high: tall ? null : hertzAt(top),
  };
}
function boxes(area, each, check) {
  for (const old of area.querySelectorAll(".box")) old.remove();
  const shown = [["proposed", check || each.answer?.kind === "nothing" ? null : each.proposal], ["drawn", each.box ?? each.answer]];
  for (const [kind, box] of shown) {
    if (!box || (box.start == null && box.low == null && box.high == null) || (kind === "proposed" && each.box)) continue;
    const { left, right, bottom, top } = places(box, each);
    area.append(made("span", { class: `box ${kind}`, style: `left:${100 * left}%;width:${100 * (right - left)}%;bottom:${100 * bottom}%;height:${100 * (top - bottom)}%` }));
  }
}
function narrow(box, number = at) {
  const each = clips()[number];
  each.box = box;
  if (number === at && each.answer?.kind === "labels") answer("labels", each.answer.labels, { stay: true });
  retell(number);
  if (box) say(spoken(box, each));
}
function spoken(box, each) {
  const { start, end } = { start: box.start ?? each.start, end: box.end ?? each.end };
  const band = box.low == null ? "" : `, ${Math.round(box.low)} to ${Math.round(box.high)} Hz`;
  return `from ${(start - each.start).toFixed(2)} to ${(end - each.start).toFixed(2)} s of the clip${band}`;
}
function listen(area, each, number) {
  area.addEventListener("pointerdown", (event) => {
    if (event.button) return;
    const frame = area.getBoundingClientRect(), inside = (value) => Math.min(Math.max(value, 0), 1);
    const place = (one) => ({ x: inside((one.clientX - frame.left) / frame.width), y: inside((frame.bottom - one.clientY) / frame.height) });
    const from = place(event), first = [event.clientX, event.clientY];
    let drawn = null;
    if (number !== null) choose(number, true);
    const move = (moved) => {
      if (!drawn && Math.hypot(moved.clientX - first[0], moved.clientY - first[1]) < 5) return;
      const to = place(moved);
      drawn = { left: Math.min(from.x, to.x), right: Math.max(from.x, to.x), bottom: Math.min(from.y, to.y), top: Math.max(from.y, to.y) };
      boxes(area, { ...each, box: boxOf(drawn, each) }, true);
    };
    const end = (ended) => {
      area.removeEventListener("pointermove", move);
      if (drawn && ended.type === "pointerup") narrow(boxOf(drawn, each));
      else if (ended.type === "pointerup") play();
      else retell();
    };
    area.setPointerCapture(event.pointerId);
    area.addEventListener("pointermove", move);
    for (const kind of ["pointerup", "pointercancel"]) area.addEventListener(kind, end, { once: true });
  });
}
let supposing = 0;
function suppose() {
  clearTimeout(supposing);
  const each = clip(), label = wish.label ?? each?.answer?.labels[0] ?? each?.scores[0]?.[0];
  if (!each || !label || pages[page].check || each.proposal !== undefined) return;
  supposing = setTimeout(async () => {
    try { each.proposal = (await ask(`${address("box", each.row)}&label=${encodeURIComponent(label)}`)).box; } catch { return; }
    const number = clips().indexOf(each);
    if (number >= 0) retell(number);
    mark();
  }, 150);
}
function shift(across, up, grow) {
  const each = clip(), now = each.box ?? (each.answer?.start != null || each.answer?.low != null ? each.answer : each.proposal);
  const old = now ? places(now, each) : { left: 0.25, right: 0.75, bottom: 0, top: 1 };
  const step = 0.02, next = { ...old };
  next.right += step * across;
  next.top += step * up;
  if (!grow) { next.left += step * across; next.bottom += step * up; }
  const fits = next.left >= -1e-9 && next.right <= 1 + 1e-9 && next.bottom >= -1e-9 && next.top <= 1 + 1e-9;
  if (fits && next.right - next.left >= step && next.top - next.bottom >= step) narrow(boxOf(next, each));
}
async function enlarge() {
  const each = clip(), dialog = $("#large");
  if (!each) return;
  if (!dialog.open) dialog.show(); // not modal: the answers below it can be clicked
  if (dialog.dataset.row === String(each.row)) return;
  dialog.dataset.row = each.row;
  try { dialog.innerHTML = await ask(address("large", each.row)); } catch (error) { dialog.textContent = error.message; return; }
  const area = $(".area", dialog);
  area.append(made("span", { class: "run" }));
  area.tabIndex = 0;
  area.focus();
  listen(area, each, null);
  boxes(area, each, pages[page].check);
  const hint = made("p", { class: "soft" }, "Drag for a box; ", made("kbd", {}, "b"), " takes the proposed one, ", made("kbd", {}, "space"), " plays, labels as before.");
  dialog.append(made("form", { method: "dialog" }, hint, made("button", {}, made("kbd", {}, "esc"), " close")));
}
$("#large").addEventListener("close", () => { delete $("#large").dataset.row; item()?.focus({ preventScroll: true }); });

// Keys.
const columns = () => {
  const all = [...$("#grid").children], first = all[0]?.offsetTop;
  return Math.max(1, all.findIndex((each) => each.offsetTop !== first) === -1 ? all.length : all.findIndex((each) => each.offsetTop !== first));
};
const keys = {
  y: () => { const best = clip()?.scores[0]; if (best && !pages[page].check) answer("labels", [wish.label ?? best[0]]); },
  n: () => answer("nothing", []),
  u: () => answer("unsure", []),
  " ": () => play(),
  b: () => { const each = clip(); if (each?.proposal && !pages[page].check) narrow({ ...each.proposal }); },
  l: () => { if (clip()) { set({ like: clip().row, example: false, check: false }, `like ${clip().when}`); } },
  c: () => set({ check: !wish.check }),
  "+": rename,
  "?": () => $("#keys").showModal(),
  Enter: enlarge,
  Delete: () => narrow(null),
  Backspace: undo,
  PageDown: () => turn(1),
  PageUp: () => turn(-1),
  ArrowLeft: () => choose(at - 1),
  ArrowRight: () => (at + 1 < clips().length ? choose(at + 1) : undefined),
  ArrowUp: () => (at - columns() >= 0 ? choose(at - columns()) : undefined),
  ArrowDown: () => (at + columns() < clips().length ? choose(at + columns()) : undefined),
  Home: () => choose(0),
  End: () => choose(clips().length - 1),
};
const typing = (element) => element.matches("select, input:not([type=checkbox]), textarea") || element.closest("#naming, #keys");
addEventListener("keydown", (event) => {
  if (typing(event.target)) return;
  if (event.key === "Escape" && $("#large").open) { event.preventDefault(); $("#large").close(); return; }
  if ((event.ctrlKey || event.metaKey) && event.key.toLowerCase() === "z") { event.preventDefault(); undo(); return; }
  if (event.ctrlKey || event.metaKey) return;
  const arrow = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, 1], ArrowDown: [0, -1] }[event.key];
  if (event.altKey) {
    if (arrow && clip()) { event.preventDefault(); shift(...arrow, event.shiftKey); }
    return;
  }
  // On a control these keys are the control's.
  if ([" ", "Enter"].includes(event.key) && event.target.closest("button, .button, summary, a, input")) return;
  const digit = /^(?:Digit|Numpad)(\d)$/.exec(event.code)?.[1] ?? (/^\d$/.test(event.key) ? event.key : null);
  if (digit !== null) {
    const label = state.labels[digit === "0" ? 9 : Number(digit) - 1];
    event.preventDefault();
    if (label === undefined) notice(`There is no label ${digit}. Press + to name one.`);
    else if (!event.repeat) give(label, event.shiftKey);
    return;
  }
  const key = event.key.length === 1 ? event.key.toLowerCase() : event.key;
  if (!(key in keys) || (event.repeat && !arrow)) return;
  event.preventDefault();
  keys[key]();
});
$("#answers").addEventListener("click", (event) => {
  const button = event.target.closest("button");
  if (!button) return;
  if (button.dataset.label !== undefined) give(button.dataset.label, event.shiftKey);
  else keys[button.dataset.key]();
});
$("#grid").addEventListener("dblclick", enlarge);

// What comes next.
function set(changes, example) {
  Object.assign(wish, changes);
  if ("like" in changes || "example" in changes) {
    $("#example").hidden = wish.like === null && !wish.example;
    if (example) $("#example span").textContent = example;
  }
  $("#blind").setAttribute("aria-pressed", String(wish.check));
  more();
}
function drawLabels() {
  $("#labels").replaceChildren(...state.labels.map((label, number) => made("li", {},
    made("button", { type: "button", "data-label": label, "aria-pressed": "false" },
      ...(number < 10 ? [made("kbd", { class: `k${number % 10}` }, String((number + 1) % 10))] : []), ` ${label}`))),
    made("li", {}, made("button", { type: "button", "data-key": "+" }, made("kbd", {}, "+"), " label")));
  const about = $("#about").value;
  $("#about").replaceChildren(made("option", { value: "" }, "all labels"), ...state.labels.map((label) => made("option", { value: label }, label)));
  $("#about").value = state.labels.includes(about) ? about : "";
  mark();
}
async function drop(file) {
  if (!file) return;
  if (file.size > state.most) { notice(`${file.name} is larger than the ${state.most / 1e9} GB that can be dropped.`, "warn"); return; }
  notice(`Listening to ${file.name} …`);
  try {
    const told = await ask(`/example?name=${encodeURIComponent(file.name)}`, file);
    set({ example: true, like: null, check: false }, `like ${told.name}`);
  } catch (error) { notice(error instanceof Refused ? `${file.name}: ${error.message}` : "The server does not answer.", "warn"); }
}
$("#by").addEventListener("change", (event) => { event.target.blur(); set({ by: event.target.value, check: false }); });
$("#about").addEventListener("change", (event) => { event.target.blur(); set({ label: event.target.value || null, check: false }); });
$("#like").addEventListener("click", keys.l);
$("#blind").addEventListener("click", keys.c);
$("#file").addEventListener("change", (event) => { drop(event.target.files[0]); event.target.value = ""; });
$("#drop").addEventListener("keydown", (event) => { if (event.key === "Enter" || event.key === " ") { event.preventDefault(); $("#file").click(); } });
$("#example button").addEventListener("click", () => set({ like: null, example: false }));
$("#keys-open").addEventListener("click", keys["?"]);
$("#tools").addEventListener("submit", (event) => event.preventDefault());
$("#auto").addEventListener("change", (event) => { localStorage.setItem("tymbal-label-auto", event.target.checked ? "1" : ""); event.target.blur(); });
addEventListener("dragover", (event) => { if (event.dataTransfer?.types.includes("Files")) { event.preventDefault(); document.body.classList.add("dropping"); } });
addEventListener("dragleave", (event) => { if (!event.relatedTarget) document.body.classList.remove("dropping"); });
addEventListener("drop", (event) => { event.preventDefault(); document.body.classList.remove("dropping"); drop(event.dataTransfer.files[0]); });

(async () => {
  while (true) {
    try { state = await ask("/state"); break; } catch (error) { notice(error instanceof Refused ? error.message : "The server does not answer.", "warn"); await wait(1000); }
  }
  $("#facts").textContent = state.facts;
  $("#by").replaceChildren(...Object.entries(state.ways).map(([key, name]) => made("option", { value: key }, name)));
  wish.by = $("#by").value = Object.keys(state.ways)[0];
  $("#auto").checked = localStorage.getItem("tymbal-label-auto") === "1";
  drawLabels();
  queue = JSON.parse(localStorage.getItem(kept()) ?? "[]"); // what an earlier page could not send
  keep();
  if (queue.length) send();
  learn();
  more();
})();
