// The page's behaviour: what is asked stands in the form and in the address; every figure comes from /cost/api.

import { apiName, el, say, sayName, showDecision, showPrices, showTraining, sizeOf } from "./calculator_answer.js";

const VIEWS = {
  decide: { path: "decision", show: showDecision },
  train: { path: "training", show: showTraining, sizeOf },
  prices: { path: "prices", show: showPrices },
};
const QUIET_MS = 250; // how long after the last key stroke a question is asked
const CUSTOM = "custom";
const NEEDED_OF = { size: "model", custom: "api", month: "pay", second: "pay" }; // a choice, and the field in which it is made
let apiKey = ""; // in memory only: closing the page forgets it
let choices = null;
let view = "decide";
let latest = null; // the answer on show, for the buttons that copy
let asked = 0;
let timer = 0;

const section = (name) => document.getElementById(name);
const formOf = (name) => section(name).querySelector("form.inputs");
const fieldsOf = (name) => [...formOf(name).querySelectorAll("[name]")].filter((field) => !field.closest("[hidden]"));

class Refusal extends Error {
  constructor(status, error) {
    super(error.message);
    this.status = status;
    this.param = error.param ?? "";
  }
}

async function ask(path, body) {
  const headers = apiKey ? { Authorization: `Bearer ${apiKey}` } : {};
  const options = { headers, cache: "no-store", credentials: "omit" };
  if (body) Object.assign(options, { method: "POST", body: JSON.stringify(body) });
  if (body) headers["Content-Type"] = "application/json";
  let response;
  try {
    response = await fetch(`/cost/api/${path}`, options);
  } catch {
    throw new Refusal(0, { message: say("no-connection") });
  }
  const answer = await response.json().catch(() => ({ error: { message: say("no-answer") } }));
  if (!response.ok) throw new Refusal(response.status, answer.error);
  return answer;
}

// A question is what stands in the visible fields; an empty one is left out, and the server says what that means.
function questionOf(name) {
  const body = {};
  for (const field of fieldsOf(name)) {
    if (field.value === "" && !field.validity.badInput) continue;
    const value = field.type === "number" ? field.valueAsNumber : field.value;
    if (field.dataset.assume) {
      if (field.value !== field.defaultValue) (body.assume ??= {})[field.dataset.assume] = value;
    } else {
      body[field.name] = "list" in field.dataset ? value.split(",").map((name) => name.trim()).filter(Boolean) : value;
    }
  }
  if (body.model === "size") delete body.model;
  return body;
}

function addressOf() {
  const query = new URLSearchParams({ view });
  for (const field of fieldsOf(view)) {
    if (field.value !== "" && !(field.dataset.assume && field.value === field.defaultValue)) query.set(field.name, field.value);
  }
  const here = new URLSearchParams(location.search).get("lang");
  if (here) query.set("lang", here);
  return query;
}

function readAddress() {
  const query = new URLSearchParams(location.search);
  if (query.get("view") in VIEWS) view = query.get("view");
  for (const field of formOf(view).querySelectorAll("[name]")) {
    const value = query.get(field.name);
    if (value === null) continue;
    // A choice that the list does not have is kept: the server says what is wrong with it.
    if (field.tagName === "SELECT" && ![...field.options].some((option) => option.value === value)) {
      field.append(el("option", { value }, value));
    }
    field.value = value;
    if (field.closest("details") && value !== field.defaultValue && field.tagName !== "SELECT") field.closest("details").open = true;
  }
}

function writeAddress() {
  const query = addressOf();
  history.replaceState(null, "", `?${query}`);
  for (const link of document.querySelectorAll("[data-lang]")) {
    query.set("lang", link.dataset.lang);
    link.href = `?${query}`;
    if (link.dataset.lang === document.documentElement.lang) link.setAttribute("aria-current", "true");
  }
}

function showNeeded() {
  for (const name of Object.keys(VIEWS)) {
    for (const field of formOf(name).querySelectorAll("[data-needs]")) {
      const needed = field.dataset.needs;
      field.hidden = formOf(name).querySelector(`[name="${NEEDED_OF[needed]}"]`).value !== needed;
    }
  }
}

function showView() {
  for (const name of Object.keys(VIEWS)) section(name).hidden = name !== view;
  for (const link of document.querySelectorAll("[data-view]")) {
    if (link.dataset.view === view) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
}

function options(list, selected) {
  return list.map(([value, text]) => el("option", { value, selected: value === selected }, text));
}

function fillChoices() {
  const families = new Map();
  for (const model of choices.models) families.set(model.family, [...(families.get(model.family) ?? []), model]);
  for (const select of document.querySelectorAll('[data-fill="models"]')) {
    const chosen = select.id.startsWith("t-") ? "deepseek-ai/DeepSeek-V3" : "Qwen/Qwen2.5-7B";
    const groups = [...families].map(([label, models]) =>
      el("optgroup", { label }, ...options(models.map((m) => [m.id, `${m.name} · ${sizeOf(m.num_parameters)}`]), chosen)),
    );
    select.replaceChildren(el("option", { value: "size" }, say("by-size")), ...groups);
  }
  for (const select of document.querySelectorAll('[data-fill="gpus"]')) {
    const chosen = select.id.startsWith("t-") ? "h800" : "h100";
    select.replaceChildren(...options(choices.gpus.map((gpu) => [gpu.name, gpu.title]), chosen));
  }
  for (const field of document.querySelectorAll('[name="on"]')) {
    field.value = field.id === "t-on" ? "2024-12-27" : choices.today;
    field.defaultValue = field.value;
  }
  for (const box of document.querySelectorAll("[data-fill^=assumptions-]")) {
    const rows = choices.assumptions[box.dataset.fill.replace("assumptions-", "")].map((row) => {
      const id = `${box.id}-${row.name}`;
      const input = { id, name: `assume.${row.name}`, "data-assume": row.name, type: "number", step: "any", min: "0", value: row.value };
      return el("div", { class: "field" }, el("label", { for: id, title: row.source }, sayName("assume", row.name)), el("input", input));
    });
    box.append(...rows);
  }
}

async function fillApis(wanted = section("d-api").value) {
  const { prices } = await ask("prices", { on: section("d-on").value || choices.today });
  const rows = prices.map((price) => [price.price_id, apiName(price)]).sort((one, other) => one[1].localeCompare(other[1]));
  const known = prices.find((price) => price.price_id === wanted || price.name === wanted);
  // A price that is not of that day is kept: the server says what is wrong with it.
  if (wanted && wanted !== CUSTOM && !known) rows.push([wanted, wanted]);
  const chosen = known?.price_id || wanted || (prices.find((price) => !price.may_have_ended) ?? prices[0])?.price_id || CUSTOM;
  section("d-api").replaceChildren(...options([...rows, [CUSTOM, say("api-custom")]], chosen));
}

function blame(problem) {
  const fields = fieldsOf(view).filter((field) => field.name === problem.param);
  for (const field of fields) {
    field.setAttribute("aria-invalid", "true");
    field.setAttribute("aria-describedby", `${field.id}-problem`);
    if (field.closest("details")) field.closest("details").open = true;
    field.after(el("span", { class: "field-problem", id: `${field.id}-problem`, lang: "en" }, problem.message));
  }
  const label = fields[0] ? document.querySelector(`label[for="${fields[0].id}"]`).textContent : "";
  const text = label ? say("problem-in", { field: label }) : problem.message;
  section(view).querySelector(".verdict").replaceChildren(el("span", { class: "problem-text" }, text));
  section(view).querySelector(".result").replaceChildren();
}

function clearBlame() {
  for (const field of document.querySelectorAll("[aria-invalid]")) {
    field.removeAttribute("aria-invalid");
    field.removeAttribute("aria-describedby");
  }
  for (const problem of document.querySelectorAll(".field-problem")) problem.remove();
}

async function answer() {
  const mine = ++asked;
  const name = view;
  const question = questionOf(name);
  writeAddress();
  section(name).setAttribute("aria-busy", "true");
  try {
    const found = await ask(VIEWS[name].path, question);
    if (mine !== asked) return; // a later question is on its way
    latest = found;
    clearBlame();
    const shown = VIEWS[name].show(found);
    section(name).querySelector(".verdict").replaceChildren(...shown.verdict);
    section(name).querySelector(".result").replaceChildren(...shown.blocks);
    if (name === "decide") section("caveat").hidden = !shown.isCaveated;
  } catch (problem) {
    if (!(problem instanceof Refusal)) throw problem;
    if (mine !== asked) return;
    latest = null;
    clearBlame();
    if (problem.status === 401) askForKey();
    blame(problem);
  } finally {
    if (mine === asked) section(name).removeAttribute("aria-busy");
  }
}

function askForKey() {
  section("key-form").hidden = false;
  section("key").focus();
}

async function begin() {
  showView();
  try {
    choices = await ask("choices");
    fillChoices();
    readAddress();
    await fillApis();
  } catch (problem) {
    if (!(problem instanceof Refusal)) throw problem;
    if (problem.status === 401) askForKey();
    blame(problem);
    return;
  }
  showView();
  showNeeded();
  await answer();
}

// One line a figure, its name as a path: sides.api.usd_per_month,123.4
function toCsv(value, path = "") {
  if (value === null || typeof value !== "object") {
    const text = value === null ? "" : String(value);
    // A leading =, +, - or @ would be a formula where a spreadsheet opens it; a number may have its minus.
    const safe = typeof value !== "number" && /^[=+\-@\t\r]/.test(text) ? `'${text}` : text;
    return [`${path},${/[",\r\n]/.test(safe) ? `"${safe.replaceAll('"', '""')}"` : safe}`];
  }
  return Object.entries(value).flatMap(([key, inner]) => toCsv(inner, path ? `${path}.${key}` : key));
}

async function copy(what) {
  const texts = {
    link: () => location.href,
    json: () => JSON.stringify(latest, null, 1),
    csv: () => ["name,value", ...toCsv(latest)].join("\n"),
  };
  if (what !== "link" && !latest) return;
  const byHand = section("by-hand");
  try {
    await navigator.clipboard.writeText(texts[what]());
    byHand.hidden = true;
    section("copied").textContent = say("copied");
  } catch {
    // No clipboard outside https and this machine: the text is shown to be copied by hand.
    byHand.hidden = false;
    const area = byHand.querySelector("textarea");
    area.value = texts[what]();
    area.focus();
    area.select();
  }
}

async function onInput(event) {
  clearTimeout(timer);
  section("copied").textContent = "";
  showNeeded();
  timer = setTimeout(async () => {
    if (event.target.id === "d-on" && event.target.value) await fillApis().catch(blame);
    answer();
  }, QUIET_MS);
}

for (const name of Object.keys(VIEWS)) {
  formOf(name).addEventListener("input", onInput);
  formOf(name).addEventListener("submit", (event) => event.preventDefault());
}
section("key-form").addEventListener("submit", (event) => {
  event.preventDefault();
  apiKey = section("key").value.trim();
  section("key-form").hidden = true;
  begin();
});
function edit(field) {
  if (field.closest("details")) field.closest("details").open = true;
  field.focus();
}
section("to-quality").addEventListener("click", () => edit(section("d-pass-own")));
document.querySelector("main").addEventListener("click", (event) => {
  const link = event.target.closest("[data-edit]");
  if (!link) return;
  event.preventDefault();
  edit(section(link.dataset.edit));
});
for (const button of document.querySelectorAll("[data-copy]")) button.addEventListener("click", () => copy(button.dataset.copy));
for (const link of document.querySelectorAll("[data-view]")) {
  link.addEventListener("click", (event) => {
    event.preventDefault();
    view = link.dataset.view;
    showView();
    section(view).querySelector("h1").focus();
    if (choices) answer();
  });
}
begin();
