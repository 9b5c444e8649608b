"use strict";
document.documentElement.classList.add("scripted");

// Listening room: one place in time per example, shared by all its sounds.
for (const example of document.querySelectorAll(".example")) {
  const clips = [...example.querySelectorAll(".clip[data-duration]")].map((element) => ({
    element,
    sound: element.querySelector("audio"),
    pick: element.querySelector(".pick"),
    picture: element.querySelector(".spectrogram"),
    head: element.querySelector(".playhead"),
    duration: Number(element.dataset.duration),
  }));
  const play = example.querySelector(".play");
  const seek = example.querySelector("input");
  const shown = example.querySelector("output");
  if (clips.length === 0) { example.querySelector(".transport").hidden = true; continue; }
  let current = clips.find((clip) => clip.element.classList.contains("role-claim")) ?? clips[0];
  let place = 0;
  seek.max = String(Math.max(...clips.map((clip) => clip.duration)));

  function draw() {
    seek.value = String(place);
    seek.setAttribute("aria-valuetext", place.toFixed(1) + " seconds");
    shown.textContent = place.toFixed(1) + " s";
    for (const clip of clips) {
      const share = Math.min(1, place / clip.duration);
      clip.head.style.visibility = "visible";
      clip.head.style.transform = "translateX(" + share * (clip.picture.clientWidth - 2) + "px)";
    }
  }
  function follow() {
    if (current.sound.paused) return;
    place = current.sound.currentTime;
    draw();
    requestAnimationFrame(follow);
  }
  function mark() {
    for (const clip of clips) {
      const on = clip === current;
      clip.element.classList.toggle("chosen", on);
      clip.pick.setAttribute("aria-pressed", String(on && !clip.sound.paused));
    }
    play.textContent = current.sound.paused ? "▶" : "⏸";
    play.setAttribute("aria-label", current.sound.paused ? "Play" : "Pause");
  }
  function start(clip) {
    for (const other of document.querySelectorAll("audio")) if (other !== clip.sound) other.pause();
    current = clip;
    if (place >= clip.duration - 0.02) place = 0;
    clip.sound.currentTime = place;
    clip.sound.play().then(() => { mark(); follow(); }, mark);
  }
  function moveTo(seconds) {
    place = Math.max(0, Math.min(seconds, current.duration));
    current.sound.currentTime = place;
    draw();
  }
  for (const clip of clips) {
    clip.pick.addEventListener("click", () => (clip === current && !clip.sound.paused ? clip.sound.pause() : start(clip)));
    clip.picture.addEventListener("click", (event) => {
      const box = clip.picture.getBoundingClientRect();
      place = (clip.duration * (event.clientX - box.left)) / box.width;
      start(clip);
    });
    clip.sound.addEventListener("pause", mark);
    clip.sound.addEventListener("play", mark);
    clip.sound.addEventListener("ended", () => { place = 0; draw(); mark(); });
  }
  play.addEventListener("click", () => (current.sound.paused ? start(current) : current.sound.pause()));
  seek.addEventListener("input", () => moveTo(Number(seek.value)));
  example.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const clip = clips.find((item) => item.pick.querySelector(".key").textContent === event.key);
    if (clip) { event.preventDefault(); start(clip); }
  });
  mark();
}

// Behind a number: its signature, and the examples it comes from.
const payload = JSON.parse(document.getElementById("payload").textContent);
const behind = document.getElementById("behind");

function cell(name, text, numeric) {
  const element = document.createElement(name);
  element.textContent = text;
  if (numeric) element.className = "num";
  return element;
}

function fill(table, header, rows) {
  const order = { column: -1, down: false };
  const head = document.createElement("tr");
  function show() {
    const sorted = order.column < 0 ? rows : [...rows].sort((a, b) => {
      const x = a[order.column], y = b[order.column];
      if (x === null || y === null) return (x === null) - (y === null);
      const by = typeof x === "number" ? x - y : x.localeCompare(y);
      return order.down ? -by : by;
    });
    table.tBodies[0].replaceChildren(...sorted.map((row) => {
      const line = document.createElement("tr");
      line.append(...row.map((value) => cell("td", value === null ? "not run" : String(value), typeof value === "number")));
      return line;
    }));
  }
  header.forEach((title, column) => {
    const element = cell("th", "", column === 2);
    const button = cell("button", title);
    button.type = "button";
    element.scope = "col";
    element.append(button);
    button.addEventListener("click", () => {
      order.down = order.column === column && !order.down;
      order.column = column;
      for (const other of head.children) other.removeAttribute("aria-sort");
      element.setAttribute("aria-sort", order.down ? "descending" : "ascending");
      show();
    });
    head.append(element);
  });
  table.tHead.replaceChildren(head);
  show();
}

function open(row) {
  const [system, metric, value, interval, n, again, signature] = [...row.cells].map((item) => item.textContent.trim());
  behind.querySelector("h2").textContent = system + ", " + metric;
  behind.querySelector(".facts").textContent = n === "–" ? value + ": " + again
    : value + (row.dataset.unit ? " " + row.dataset.unit : "") + ", 95 % CI " + interval + ", N = " + n + ". Computed again from the examples: " + again + ".";
  behind.querySelector(".signature").textContent = signature;
  const command = behind.querySelector(".command");
  command.textContent = "python -m reports verify runs/" + command.dataset.run + " --cell '" + row.dataset.cell + "'" + (row.dataset.sounds ? " --sounds" : "");
  const mine = payload.systems[row.dataset.system];
  const values = mine && mine.values[row.dataset.column];
  const table = behind.querySelector("table");
  table.parentElement.hidden = !values;
  behind.querySelector(".shown").textContent = !values ? "No per-example values are stored for this metric."
    : mine.subject.length < mine.total ? "The first " + mine.subject.length + " of " + mine.total + " examples; examples.csv has all." : "";
  if (values) {
    const unit = row.dataset.unit ? ", " + row.dataset.unit : "";
    fill(table, ["Listener", "Stimulus", metric + unit, "Heard"],
      values.map((item, i) => [mine.subject[i], mine.stimulus[i], item, mine.heard[i]]));
  }
  behind.showModal();
}

for (const link of document.querySelectorAll("a[data-cell]")) {
  link.addEventListener("click", (event) => {
    event.preventDefault();
    open(document.getElementById(link.dataset.cell));
  });
}
if (behind) behind.querySelector("a").addEventListener("click", () => behind.close());
