// Bytes over time: what the cache holds, and what FP16 would hold for the same tokens.

const WIDTH = 400;
const HEIGHT = 240;
const LEFT = 34;
const RIGHT = 78; // room for the labels of the lines
const TOP = 14;
const BOTTOM = 24;
const MAX_SAMPLES = 1200;
const LABEL_GAP = 15;

export class Plot {
  constructor(svg) {
    this.svg = svg;
    this.samples = []; // { at: seconds of generating, held: MB, fp16: MB }
    this.clock = 0;
    this.last = null;
    const middle = (LEFT + WIDTH - RIGHT) / 2;
    svg.replaceChildren(
      make("line", { class: "grid", x1: LEFT, x2: WIDTH - RIGHT, y1: HEIGHT - BOTTOM, y2: HEIGHT - BOTTOM }),
      text(middle, HEIGHT / 2, "drawn while answers are generated", "middle"),
    );
  }

  /** Add a sample, in MB, and draw. */
  add(held, fp16) {
    const now = performance.now() / 1000;
    if (this.last !== null) this.clock += now - this.last;
    this.last = now;
    this.samples.push({ at: this.clock, held, fp16 });
    this.samples = this.samples.slice(-MAX_SAMPLES);
    this.draw();
  }

  /** Stop the clock until the next sample: where nothing runs, nothing is held. */
  pause() {
    this.last = null;
  }

  draw() {
    const { samples } = this;
    const start = samples[0].at;
    const end = Math.max(samples.at(-1).at, start + 5);
    const top = Math.max(...samples.map((one) => Math.max(one.held, one.fp16)));
    const step = niceStep(top / 5);
    const max = Math.max(step, Math.ceil(top / step) * step);
    const x = (at) => LEFT + ((at - start) / (end - start)) * (WIDTH - LEFT - RIGHT);
    const y = (value) => HEIGHT - BOTTOM - (value / max) * (HEIGHT - TOP - BOTTOM);
    const line = (key) => samples.map((one) => `${x(one.at).toFixed(1)},${y(one[key]).toFixed(1)}`);
    const area = (upper, lower) => `M${upper.join("L")}L${[...lower].reverse().join("L")}Z`;
    const held = line("held");
    const fp16 = line("fp16");
    const floor = samples.map((one) => `${x(one.at).toFixed(1)},${y(0)}`);

    this.svg.replaceChildren(
      ...yAxis(max, step, y),
      ...xAxis(start, end, x),
      make("path", { class: "saved", d: area(fp16, held) }),
      make("path", { class: "held", d: area(held, floor) }),
      make("path", { class: "line fp16", d: `M${fp16.join("L")}` }),
      make("path", { class: "line held", d: `M${held.join("L")}` }),
      ...labels(samples.at(-1), x, y),
    );
    const newest = samples.at(-1);
    this.svg.setAttribute(
      "aria-label",
      `The cache holds ${newest.held.toFixed(1)} MB, FP16 would hold ${newest.fp16.toFixed(1)} MB`,
    );
  }
}

function yAxis(max, step, y) {
  const marks = [];
  for (let value = 0; value <= max * 1.001; value += step) {
    const at = y(value);
    marks.push(make("line", { class: "grid", x1: LEFT, x2: WIDTH - RIGHT, y1: at, y2: at }));
    marks.push(text(LEFT - 6, at + 4, trim(value), "end"));
  }
  marks.push(text(LEFT, y(max) - 5, "MB", "start"));
  return marks;
}

function xAxis(start, end, x) {
  const step = niceStep((end - start) / 4);
  const marks = [];
  for (let at = Math.ceil(start / step) * step; at <= end; at += step) {
    marks.push(text(x(at), HEIGHT - 6, `${trim(at)} s`, "middle"));
  }
  return marks;
}

/** Name the lines at their ends, one above the other where they are close. */
function labels(newest, x, y) {
  const at = x(newest.at) + 6;
  let [held, fp16] = [y(newest.held) + 4, y(newest.fp16) + 4];
  const gap = LABEL_GAP - Math.abs(held - fp16);
  if (gap > 0) {
    const sign = held >= fp16 ? 1 : -1;
    held += (sign * gap) / 2;
    fp16 -= (sign * gap) / 2;
  }
  return [text(at, fp16, "FP16", "start"), text(at, held, "compressed", "start")];
}

/** Return the smallest of 1, 2, 5 × 10ⁿ that is not below `size`. */
function niceStep(size) {
  const power = 10 ** Math.floor(Math.log10(Math.max(size, 1e-6)));
  return [1, 2, 5, 10].map((factor) => factor * power).find((step) => step >= size * 0.999);
}

const trim = (value) => String(Number(value.toFixed(6)));

function text(x, y, content, anchor) {
  const element = make("text", { x, y, "text-anchor": anchor });
  element.textContent = content;
  return element;
}

function make(name, attributes) {
  const element = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  return element;
}
