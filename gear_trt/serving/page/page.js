// The built-in page: a chat over /v1/chat/completions, and a plot of what /metrics says meanwhile.

import { Plot } from "./plot.js";

const BUSY_MS = 250;
const IDLE_MS = 2000;
const SPEED_WINDOW_S = 2;
const MEGA = 1e6;
const TEMPERATURE = 0.7;

const find = (id) => document.getElementById(id);
const plot = new Plot(find("plot"));

let model = null;
let apiKey = null;
let messages = [];
let running = null; // AbortController of the answer that is being read

// Requests

async function api(path, options = {}) {
  const headers = { "Content-Type": "application/json" };
  if (apiKey) headers.Authorization = `Bearer ${apiKey}`;
  const response = await fetch(path, { ...options, headers });
  if (response.status === 401) {
    apiKey = await askForKey();
    return api(path, options);
  }
  if (!response.ok) {
    const body = await response.json().catch(() => null);
    throw new Error(body?.error?.message ?? `the server answered ${response.status}`);
  }
  return response;
}

function askForKey() {
  const dialog = find("locked");
  dialog.showModal();
  return new Promise((resolve) => {
    dialog.addEventListener("close", () => resolve(find("key").value), { once: true });
  });
}

async function* events(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let text = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) throw new Error("the server closed the connection");
    text += value;
    const parts = text.split("\n\n");
    text = parts.pop();
    for (const part of parts) {
      const data = part.slice("data: ".length);
      if (data === "[DONE]") return;
      const event = JSON.parse(data);
      if (event.error) throw new Error(event.error.message);
      yield event;
    }
  }
}

// Chat

async function ask(question) {
  find("empty")?.remove();
  messages.push({ role: "user", content: question });
  show("user").text.textContent = question;
  const answer = show("assistant");
  answer.element.classList.add("busy");
  follows = true;
  follow();
  running = new AbortController();
  find("send").textContent = "Stop";
  try {
    await read(answer);
  } catch (error) {
    const isStopped = error.name === "AbortError";
    note(answer, isStopped ? "stopped" : error.message, !isStopped);
  } finally {
    running = null;
    find("send").textContent = "Send";
    answer.element.classList.remove("busy");
    messages.push({ role: "assistant", content: answer.text.textContent });
  }
}

async function read(answer) {
  const body = {
    model,
    messages,
    temperature: TEMPERATURE,
    stream: true,
    stream_options: { include_usage: true },
  };
  const asked = performance.now();
  const response = await api("/v1/chat/completions", {
    method: "POST",
    body: JSON.stringify(body),
    signal: running.signal,
  });
  let first = null;
  for await (const event of events(response)) {
    first ??= performance.now();
    append(answer, event.choices[0]?.delta.content ?? "");
    if (event.usage) note(answer, summary(event.usage, asked, first, performance.now()));
  }
}

function summary(usage, asked, first, end) {
  const tokens = usage.completion_tokens;
  const parts = [`${tokens} tokens`];
  if (tokens > 1) parts.push(`${((1000 * (tokens - 1)) / (end - first)).toFixed(1)} tokens/s`);
  parts.push(`first after ${((first - asked) / 1000).toFixed(2)} s`);
  const cached = usage.prompt_tokens_details.cached_tokens;
  parts.push(`${usage.prompt_tokens} prompt tokens` + (cached ? `, ${cached} from cache` : ""));
  return parts.join(" · ");
}

function show(role) {
  const element = document.createElement("div");
  element.className = `message ${role}`;
  const text = document.createElement("div");
  text.className = "text";
  element.append(text);
  find("messages").append(element);
  return { element, text };
}

function append(answer, text) {
  answer.text.append(text);
  follow();
}

function note(answer, text, isFault = false) {
  const element = document.createElement("p");
  element.className = isFault ? "note fault" : "note";
  element.textContent = text;
  answer.element.append(element);
  follow();
}

let follows = true; // until the reader scrolls up
let lastTop = 0;

function follow() {
  const log = find("messages");
  if (follows) log.scrollTop = log.scrollHeight;
}

find("messages").addEventListener("scroll", ({ target: log }) => {
  if (log.scrollTop < lastTop) follows = false;
  if (log.scrollTop + log.clientHeight > log.scrollHeight - 2) follows = true;
  lastTop = log.scrollTop;
});

// Metrics

function parse(text) {
  const values = {};
  for (const line of text.split("\n")) {
    const match = /^(gear_\w+) (\S+)$/.exec(line);
    if (match) values[match[1]] = Number(match[2]);
  }
  return values;
}

let recent = []; // { at: seconds, tokens } of the speed's window

function speed(tokens) {
  const at = performance.now() / 1000;
  recent = [...recent.filter((sample) => at - sample.at < SPEED_WINDOW_S), { at, tokens }];
  const first = recent[0];
  return at > first.at ? (tokens - first.tokens) / (at - first.at) : 0;
}

const megabytes = (bytes) => `${(bytes / MEGA).toFixed(1)} MB`;

async function watch() {
  let isBusy = false;
  try {
    const values = parse(await (await fetch("/metrics")).text());
    isBusy = values.gear_running > 0;
    draw(values, isBusy);
  } catch {
    find("running").textContent = "no connection";
  }
  setTimeout(watch, isBusy || running ? BUSY_MS : IDLE_MS);
}

function draw(values, isBusy) {
  const rate = speed(values.gear_generated_tokens_total);
  find("speed").textContent = isBusy ? rate.toFixed(1) : "–";
  find("running").textContent = values.gear_running;
  find("waiting").textContent = values.gear_waiting;
  const { gear_prefix_hit_tokens_total: hits, gear_prompt_tokens_total: prompts } = values;
  find("hits").textContent = prompts ? `${hits} of ${prompts}` : "–";
  if (!isBusy) {
    plot.pause();
    return;
  }
  const { gear_cache_used_bytes: held, gear_cache_fp16_bytes: fp16 } = values;
  find("held").textContent = megabytes(held);
  find("fp16").textContent = megabytes(fp16);
  find("ratio").textContent = `${values.gear_cache_compression_ratio.toFixed(2)}×`;
  plot.add(held / MEGA, fp16 / MEGA);
}

// Start

find("composer").addEventListener("submit", (event) => {
  event.preventDefault();
  const question = find("prompt").value.trim();
  if (running) running.abort();
  else if (question && model) {
    find("prompt").value = "";
    ask(question);
  }
});

find("prompt").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
    event.preventDefault();
    if (!running) find("composer").requestSubmit();
  }
});

find("new").addEventListener("click", () => {
  running?.abort();
  messages = [];
  find("messages").replaceChildren();
  find("prompt").focus();
});

watch();
const card = (await (await api("/v1/models")).json()).data[0];
model = card.id;
find("model").textContent = `${card.id} · ${card.max_model_len.toLocaleString("en")} tokens of context`;
