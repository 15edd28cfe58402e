// What an answer looks like: texts, numbers and tables. Every figure was computed by the server; here it is written out.

const language = document.documentElement.lang;
const texts = new Map(
  [...document.getElementById("words").content.querySelectorAll("data")].map((entry) => [entry.value, entry.textContent]),
);
const NONE = "–";

/** A text of the page's table, with {values} put in. */
export function say(name, values = {}) {
  return (texts.get(name) ?? name).replace(/\{(\w+)\}/g, (whole, key) => values[key] ?? whole);
}

/** A name that the server wrote in English, in the page's language where the table has it. */
export function sayName(kind, english) {
  const slug = String(english).toLowerCase().replace(/[^a-z0-9]+/g, "-").replace(/^-|-$/g, "");
  return texts.get(`${kind}-${slug}`) ?? english;
}

function number(options) {
  const format = new Intl.NumberFormat(language, options);
  return (value) => (value === null || value === undefined ? NONE : format.format(value));
}

const [centsUsd, tinyUsd, wholeUsd, largeUsd] = [
  { minimumFractionDigits: 2, maximumFractionDigits: 2 },
  { maximumSignificantDigits: 3 },
  { maximumFractionDigits: 0 },
  { notation: "compact", maximumSignificantDigits: 4 },
].map((form) => number({ style: "currency", currency: "USD", currencyDisplay: "narrowSymbol", ...form }));
// $60.00 and $0.55, but $0.000123: cents where they say it all.
const smallUsd = (value) => (Math.abs(value) >= 1 || Number.isInteger(value * 100) || !value ? centsUsd : tinyUsd)(value);
const [small, whole, large] = [
  { maximumSignificantDigits: 3 },
  { maximumFractionDigits: 0 },
  { notation: "compact", maximumSignificantDigits: 4 },
].map(number);

function bySize(value, [few, some, many]) {
  const size = Math.abs(value ?? 0);
  return size < 100 ? few(value) : size < 1e6 ? some(value) : many(value);
}
export const usd = (value) => bySize(value, [smallUsd, wholeUsd, largeUsd]);
export const count = (value) => bySize(value, [small, whole, large]);
export const sizeOf = number({ notation: "compact", maximumSignificantDigits: 3 });
const percent = number({ style: "percent", maximumSignificantDigits: 3 });
const times = (value) => (value === null || value === undefined ? NONE : `×${small(value)}`);
const monthsOf = number({ style: "unit", unit: "month", unitDisplay: "long", maximumSignificantDigits: 2 });
const daysOf = number({ style: "unit", unit: "day", unitDisplay: "long", maximumSignificantDigits: 2 });
const hoursOf = number({ style: "unit", unit: "hour", unitDisplay: "long", maximumSignificantDigits: 3 });
const hours = (value) => (value > 48 ? daysOf(value / 24) : hoursOf(value));
const months = (value) => (value !== null && value < 1 ? hours(value * 730.5) : monthsOf(value));
export const day = (iso) =>
  iso ? new Intl.DateTimeFormat(language, { dateStyle: "medium", timeZone: "UTC" }).format(new Date(iso)) : NONE;

/** An element with attributes and children; a string becomes text, never markup. */
export function el(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value !== undefined && value !== false) made.setAttribute(name, value === true ? "" : value);
  }
  made.append(...children.filter((child) => child !== undefined));
  return made;
}

const figure = (text, better = false) => ({ text, class: better ? "number better" : "number" });
const english = (text) => ({ text: text ?? "", class: "source", lang: language === "en" ? undefined : "en" });

function table({ caption, head, rows }) {
  const line = (cells, tag) =>
    cells.map((cell, index) => {
      const { text, under, ...attributes } = typeof cell === "object" ? cell : { text: cell };
      const isHead = tag === "th" || index === 0;
      const scope = tag === "th" ? "col" : "row";
      const more = under ? el("span", { class: "under" }, under) : undefined;
      return el(isHead ? "th" : "td", isHead ? { scope, ...attributes } : attributes, text, more);
    });
  const body = rows.map(({ cells, ...attributes }) => el("tr", attributes, ...line(cells, "td")));
  return el(
    "div",
    { class: "block scroll", tabindex: "0", role: "region", "aria-label": caption },
    el("table", { class: `columns-${head.length}` }, el("caption", {}, caption), el("thead", {}, el("tr", {}, ...line(head, "th"))), el("tbody", {}, ...body)),
  );
}

function lines(title, items) {
  return el("div", { class: "block" }, el("h2", {}, title), el("ul", { class: "lines" }, ...items.map((item) => el("li", {}, item))));
}

/** What sets one price apart from others of its name: hours of the day, length of the prompt, tier. */
export function apiName(price) {
  if (price.confidence === "user" && price.name.startsWith("custom-")) return say("api-yours");
  const long = price.prompt_tokens_above ? say("prompts-above", { tokens: count(price.prompt_tokens_above) }) : "";
  const tier = price.tier === "standard" ? "" : price.tier;
  const marks = [sayName("window", price.window), long, tier].filter(Boolean);
  return marks.length ? `${price.name} (${marks.join(", ")})` : price.name;
}

const since = (price) => ({
  ...english(),
  text: `${day(price.effective_from)} · ${sayName("confidence", price.confidence)}: ${price.source}`,
});
const note = (text) => el("p", { class: "note" }, text);
const sentence = (head, body) => [el("strong", {}, head), " ", body];

const SIDES = [
  "usd_per_million_input",
  "usd_per_million_cached",
  "usd_per_million_output",
  "usd_per_request",
  "usd_per_solved",
  "usd_per_month",
  "once_usd",
  "total_usd",
];

function decisionVerdict(answer) {
  const { break_even: found, sides, model, gpu, question } = answer;
  const values = {
    api: apiName(sides.api),
    model: model.name,
    replicas: count(found.num_replicas),
    machines: `${count(sides.own.num_gpus)} × ${gpu}`,
    api_month: usd(sides.api.usd_per_month),
    own_month: usd(sides.own.usd_per_month),
    once: usd(sides.own.once_usd),
    months: months(found.break_even_months),
    horizon: monthsOf(question.horizon_months),
    requests: count(found.break_even_requests_per_day),
    now: count(question.requests_per_day),
    own_solved: usd(sides.own.usd_per_solved_at_best),
    api_solved: usd(sides.api.usd_per_solved),
  };
  if (found.verdict === "api" && question.pass_at_1_own === 0) return sentence(say("verdict-api"), say("own-never-solves"));
  if (found.verdict === "own" && question.pass_at_1_api === 0) return sentence(say("verdict-own"), say("api-never-solves", values));
  if (found.verdict === "own" && !sides.own.once_usd) return sentence(say("verdict-own-free"), say("verdict-own-free-why", values));
  if (found.verdict === "own") return sentence(say("verdict-own"), say("verdict-own-why", values));
  if (found.verdict === "unclear") return sentence(say("verdict-unclear"), say("verdict-unclear-why", values));
  const why = found.break_even_requests_per_day === null ? "verdict-api-never" : "verdict-api-load";
  return sentence(say("verdict-api"), `${say("verdict-api-why", values)} ${say(why, values)}`);
}

function sidesTable({ sides, question }) {
  const rows = SIDES.map((key) => {
    const [api, own] = [sides.api[key], sides.own[key]];
    const isWon = (mine, other) => key !== "once_usd" && mine !== null && (other === null || mine < other);
    const isSolved = key === "usd_per_month" && !(question.pass_at_1_own === 1 && question.pass_at_1_api === 1);
    const label = say(`row-${key.replaceAll("_", "-")}${isSolved ? "-solved" : ""}`, {
      requests: count(question.requests_per_day),
      horizon: monthsOf(question.horizon_months),
    });
    const cells = [label, figure(usd(api), isWon(api, own)), figure(usd(own), isWon(own, api))];
    return { class: key === "total_usd" ? "total" : undefined, cells };
  });
  const head = ["", figure(apiName(sides.api)), figure(sides.own.name)];
  return table({ caption: say("sides"), head, rows });
}

function thresholds({ break_even: found, question, close_call: close }) {
  const items = [];
  const horizon = monthsOf(question.horizon_months);
  items.push(found.break_even_months === null ? say("pays-never") : say("pays-months", { months: months(found.break_even_months), tokens: count(found.break_even_tokens) }));
  if (found.break_even_requests_per_day !== null) {
    items.push(say("pays-load", { requests: count(found.break_even_requests_per_day), horizon, now: count(question.requests_per_day) }));
  }
  if (found.break_even_utilisation !== null) {
    const name = found.break_even_utilisation > 1 ? "pays-utilisation-never" : "pays-utilisation";
    items.push(say(name, { needed: percent(found.break_even_utilisation), now: percent(found.utilisation) }));
  }
  if (close) items.push(say("close-call", { factor: small(close.factor), assumption: sayName("flip", close.assumption) }));
  return lines(say("thresholds"), items);
}

function demandTable({ demand, question }) {
  const horizon = monthsOf(question.horizon_months);
  const rows = demand.map((row) => ({
    cells: [
      {
        text: row.api_price_fall_per_year ? say("fall", { share: percent(row.api_price_fall_per_year) }) : say("fall-none"),
        under: row.api_price_fall_per_year ? row.source : undefined,
      },
      figure(small(row.elasticity)),
      figure(count(row.requests_per_day_at_horizon)),
      figure(usd(row.api_total_usd), row.verdict === "api"),
      figure(usd(row.own_total_usd), row.verdict === "own"),
    ],
  }));
  const head = [say("if-prices"), figure(say("head-elasticity")), figure(say("requests-then")), figure(say("api")), figure(say("own"))];
  const made = table({ caption: say("demand", { horizon }), head, rows });
  made.append(note(say("demand-note")));
  return made;
}

function flipsTable({ flips }) {
  const rows = flips.map((flip) => ({
    cells: [
      { text: sayName("flip", flip.assumption), under: sayName("unit", flip.unit) },
      figure(count(flip.now)),
      figure(count(flip.flips_at)),
      figure(times(flip.factor)),
    ],
  }));
  const head = [say("assumption"), figure(say("now")), figure(say("turns-at")), figure(say("factor"))];
  return table({ caption: say("flips"), head, rows });
}

/** The dollars of one column with as many decimals each: two digits of the least, and cents. */
function evenUsd(values) {
  const least = Math.min(1, ...values.filter((value) => value > 0));
  const decimals = Math.min(9, Math.max(2, 1 - Math.floor(Math.log10(least))));
  return number({ style: "currency", currency: "USD", currencyDisplay: "narrowSymbol", minimumFractionDigits: decimals, maximumFractionDigits: decimals });
}

function comparedTable({ compared, sides }) {
  const own = { price_id: null, usd_per_thousand_requests: sides.own.usd_per_thousand_requests, times_own: 1 };
  const dollars = evenUsd([...compared, own].map((row) => row.usd_per_thousand_requests));
  const rows = [...compared, own].map((row) => ({
    class: row.price_id === null || row.price_id === sides.api.price_id ? "chosen" : undefined,
    cells: [
      row.price_id === null ? say("own-model", { model: sides.own.name }) : apiName(row),
      figure(dollars(row.usd_per_thousand_requests)),
      figure(times(row.times_own)),
    ],
  }));
  const head = [say("api"), figure(say("head-thousand")), figure(say("head-times-own"))];
  const made = table({ caption: say("compared"), head, rows });
  made.append(note(say("compared-note")));
  return made;
}

/** The name of an assumption; where a field of the form sets it, a link there. */
function editable(name) {
  const form = document.querySelector(".view:not([hidden]) form.inputs");
  const field = form.querySelector(`[name="${name}"], [name="assume.${name}"]`);
  const text = sayName("assume", name);
  return field ? { text: el("a", { href: `#${field.id}`, "data-edit": field.id }, text) } : text;
}

function assumptionsTable(assumptions) {
  const rows = assumptions.map((row) => ({
    cells: [
      editable(row.name),
      typeof row.value === "number" ? figure(count(row.value)) : { text: sayName("value", row.value), class: "named" },
      { ...english(row.source), text: row.confidence ? `${sayName("confidence", row.confidence)}: ${row.source}` : row.source },
    ],
  }));
  return table({ caption: say("assumptions"), head: [say("assumption"), figure(say("value")), say("source")], rows });
}

export function showDecision(answer) {
  const blocks = [sidesTable(answer), thresholds(answer)];
  if (answer.flips.length) blocks.push(flipsTable(answer));
  if (answer.demand.length) blocks.push(demandTable(answer));
  const { pass_at_1_own: own, pass_at_1_api: api } = answer.question;
  return {
    verdict: decisionVerdict(answer),
    isCaveated: own === 1 && api === 1,
    blocks: [...blocks, comparedTable(answer), assumptionsTable(answer.assumptions)],
  };
}

export function showTraining(answer) {
  const { question, model, terms } = answer;
  const values = {
    model: model.name,
    hours: count(answer.gpu_hours),
    usd: usd(answer.cost_usd),
    tokens: count(question.tokens),
    gpus: count(question.num_gpus),
    gpu: answer.gpu_title,
    low: count(answer.likely_gpu_hours.low),
    high: count(answer.likely_gpu_hours.high),
    time: hours(answer.wall_hours),
  };
  const facts = [
    ["gpu-hours", count(answer.gpu_hours)],
    ["cost", usd(answer.cost_usd)],
    ["wall-time", hours(answer.wall_hours)],
    ["likely-gpu-hours", say("from-to", values)],
    ["layout", answer.layout_words],
    ["memory-per-gpu", say("of", { some: small(answer.memory_gib.total), all: small(answer.memory_gib.available) })],
    ["energy", count(answer.energy_kwh)],
    ["flops-per-token", count(answer.flops_per_token)],
    ["mfu", percent(answer.mfu)],
    ["parameters-total", count(model.num_parameters)],
    ["parameters-active", count(model.num_active_parameters)],
  ].map(([name, text]) => ({ cells: [say(name), { text, class: "named" }] }));
  const rows = terms.map((term) => ({
    cells: [sayName("term", term.name), figure(percent(term.share)), figure(count(term.gpu_hours)), figure(usd(term.cost_usd)), english(term.note)],
  }));
  rows.push({ class: "total", cells: [say("total"), figure(percent(1)), figure(count(answer.gpu_hours)), figure(usd(answer.cost_usd)), ""] });
  const head = [say("term"), figure(say("share")), figure(say("gpu-hours")), figure(say("cost")), say("why")];
  return {
    verdict: sentence(say("train-verdict", values), say("train-verdict-why", values)),
    blocks: [
      table({ caption: say("in-short"), head: ["", figure(say("value"))], rows: facts }),
      table({ caption: say("terms"), head, rows }),
      assumptionsTable(answer.assumptions),
    ],
  };
}

export function showPrices(answer) {
  const rows = answer.prices.map((price) => ({
    cells: [
      { text: apiName(price), under: price.may_have_ended ? say("may-have-ended") : undefined },
      ...[price.usd_per_million_input, price.usd_per_million_cached, price.usd_per_million_output].map((v) => figure(usd(v))),
      figure(times(price.times_cheapest_output)),
      { text: say(price.is_open_weight ? "open" : "closed"), class: "short" },
      since(price),
    ],
  }));
  const head = [say("api"), ...["input", "cached", "output", "times"].map((name) => figure(say(`head-${name}`))), say("weights"), say("since")];
  const rents = answer.machine_hours.map((price) => ({
    cells: [price.gpu, figure(usd(price.usd_per_hour)), since(price)],
  }));
  const sold = answer.prices.filter((price) => !price.may_have_ended && !price.prompt_tokens_above);
  const [first, last] = sold.length > 1 ? [sold[0], sold.at(-1)] : [answer.prices[0], answer.prices.at(-1)];
  const values = { on: day(answer.on), few: first && apiName(first), many: last && apiName(last), times: small(last && last.usd_per_million_output / first.usd_per_million_output) };
  const blocks = [table({ caption: say("token-prices"), head, rows })];
  if (rents.length) blocks.push(table({ caption: say("gpu-prices"), head: [say("gpu"), figure(say("head-hour")), say("since")], rows: rents }));
  const verdict = rows.length > 1 ? sentence(say("prices-verdict", values), say("prices-verdict-why")) : [say(rows.length ? "prices-one" : "prices-none", values)];
  return { verdict, blocks };
}
