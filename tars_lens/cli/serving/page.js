"use strict";
const at = (id) => document.getElementById(id);
let state = { neurons: [], concepts: [], prompts: [] };
let latest = 0;

function made(tag, text, attributes = {}) {
  const element = document.createElement(tag);
  if (text !== undefined) element.textContent = text;
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  return element;
}

async function asked(path, question) {
  let response;
  try {
    response = await fetch(path, question && {
      method: "POST",
      headers: { "Content-Type": "application/json" },
      body: JSON.stringify(question),
    });
  } catch {
    throw new Error("The server does not answer. Start tars-lens serve again, then reload this page.");
  }
  const found = await response.json().catch(() => ({ error: `The server said ${response.status}.` }));
  if (!response.ok) throw new Error(found.error || `The server said ${response.status}.`);
  return found;
}

const off = () => state.neurons.filter((n) => !at(`on-${n.neuron}`).checked).map((n) => n.neuron);

async function during(said, work) {
  at("error").textContent = "";
  at("status").textContent = said;
  try {
    await work();
    at("status").textContent = "";
  } catch (error) {
    at("status").textContent = "";
    at("error").textContent = error.message;
  }
}

function shade(element, share) {
  element.style.setProperty("--share", Math.max(0, Math.min(1, share)).toFixed(3));
}

function drawAnswer(side, found) {
  const text = at(`${side}-text`);
  text.replaceChildren();
  for (const token of found.tokens) {
    const span = made("span", token.text, { class: "token", title: `concept ${token.concept.toFixed(4)}` });
    shade(span, token.concept < 0.02 ? 0 : token.concept);
    text.append(span);
  }
  const table = at(`${side}-next`);
  const head = made("tr");
  head.append(made("th", "next token", { scope: "col" }), made("th", "probability", { scope: "col" }));
  const rows = found.next.map((next) => {
    const row = made("tr");
    row.append(made("td", JSON.stringify(next.token)), made("td", next.probability.toFixed(4)));
    return row;
  });
  table.replaceChildren(made("caption", "Likeliest next tokens"), head, ...rows);
}

function ask() {
  const mine = ++latest;
  return during("Asking both models.", async () => {
    const found = await asked("api/answer", { prompt: at("prompt").value, off: off() });
    if (mine !== latest) return;
    for (const side of ["base", "edited"]) drawAnswer(side, found[side]);
  });
}

function drawMap(id, found, values) {
  const head = made("tr");
  head.append(made("th", "layer", { scope: "col" }), ...found.tokens.map((t) => made("th", t, { scope: "col" })));
  const top = made("thead");
  top.append(head);
  const body = made("tbody");
  for (let layer = found.layers.length - 1; layer >= 0; layer--) {
    const row = made("tr");
    row.append(made("th", String(found.layers[layer]), { scope: "row" }));
    values[layer].forEach((p, position) => {
      const said = `layer ${found.layers[layer]}, ${JSON.stringify(found.tokens[position])}: ${p.toFixed(4)}`;
      const cell = made("td", undefined, { title: said });
      cell.append(made("span", p.toFixed(2), { class: "hidden" }));
      shade(cell, p);
      row.append(cell);
    });
    body.append(row);
  }
  at(id).replaceChildren(made("caption", "Probability of the concept"), top, body);
}

function map() {
  return during("Following the concept through the layers.", async () => {
    const found = await asked("api/flow", { prompt: at("prompt").value, concept: at("concept").value, off: off() });
    drawMap("map-before", found, found.before);
    drawMap("map-after", found, found.after);
  });
}

function cell(value) {
  if (value === null || value === undefined) return "";
  return typeof value === "number" && !Number.isInteger(value) ? value.toPrecision(4) : String(value);
}

function card(name) {
  return during(`Reading ${name}.`, async () => {
    const found = await asked("api/neuron", { neuron: name });
    at("card-title").textContent = name;
    const tables = [...found.parts, ...found.vectors].map((record) => {
      const table = made("table");
      const told = record.role ? ["concept", "kind", "role"] : [];
      for (const [key, value] of Object.entries(record)) {
        if (value === "" || value === null || told.includes(key)) continue;
        const row = made("tr");
        row.append(made("th", key.replaceAll("_", " "), { scope: "row" }), made("td", cell(value)));
        table.append(row);
      }
      return [made("h3", record.role ? `Vector: ${record.role}` : "What it hears, and how it answers"), table];
    });
    at("card-body").replaceChildren(...tables.flat());
    at("card").showModal();
  });
}

function drawNeurons() {
  at("neurons").replaceChildren(...state.neurons.map((n) => {
    const item = made("li");
    const box = made("input", undefined, { type: "checkbox", id: `on-${n.neuron}` });
    box.checked = true;
    box.addEventListener("change", ask);
    const said = ` ${n.neuron}: ${n.kind} neuron of ${n.concept}, ${n.vectors} vectors`;
    const open = made("button", `card of ${n.neuron}`, { type: "button", class: "plain" });
    open.addEventListener("click", () => card(n.neuron));
    item.append(box, made("label", said, { for: box.id }), open);
    return item;
  }));
}

async function begin() {
  state = await asked("api/state");
  at("title").textContent = `${state.concepts.join(", ")} in ${state.model}`;
  document.title = `${state.concepts.join(", ")} · tars_lens`;
  at("about").textContent = "The base model and the edited one, side by side. Nothing leaves this machine.";
  at("concept").append(...state.concepts.map((name) => made("option", name)));
  at("examples").append(...state.prompts.map((prompt) => made("option", prompt, { value: prompt })));
  at("prompt").value = state.prompts[0] || "";
  drawNeurons();
}

at("ask").addEventListener("submit", (event) => { event.preventDefault(); ask(); });
at("prompt").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) { event.preventDefault(); ask(); }
});
at("examples").addEventListener("change", () => {
  if (at("examples").value) { at("prompt").value = at("examples").value; ask(); }
});
at("map").addEventListener("click", map);
during("Loading.", begin);
