// The page of `mlx-tasks serve`: a form, the images, and two of anything from the same seeds under a slider.
"use strict";

const $ = (selector, under = document) => under.querySelector(selector);
const OWN = "own";
const STEPS = "steps";
let classes = [];

async function json(path, body) {
  const options = body && { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body) };
  const answer = await fetch(path, options);
  const told = await answer.json();
  if (!answer.ok) throw new Error(told.error ? told.error.message : answer.statusText);
  return told;
}

function fill(select, options) {
  const before = select.value;
  select.replaceChildren(...options.map(([value, text]) => new Option(text, value)));
  if (options.some(([value]) => value === before)) select.value = before;
}

function figure(data, caption, alternative) {
  const made = document.createElement("figure"), image = new Image(), text = document.createElement("figcaption");
  image.src = `data:image/png;base64,${data}`;
  image.alt = alternative;
  text.textContent = caption;
  made.append(image, text);
  return made;
}

/** Two sides of controls from one template; the second is there for comparing. */
function sides() {
  for (const side of document.querySelectorAll(".side")) {
    side.append($("#side").content.cloneNode(true));
    $(".quality", side).addEventListener("change", () => {
      $(".own", side).hidden = $(".quality", side).value !== STEPS;
    });
  }
}

async function look() {
  const { data } = await json("/v1/models");
  const now = data.find((one) => one.serves);
  if (!now) {
    $("#serving").textContent = "no model is ready yet";
    return setTimeout(start, 1000);
  }
  classes = now.classes;
  $("#serving").textContent = `${now.id} serves: ${now.size} pixels, ${now.nfe} network evaluations an image`;
  fill($("#label"), classes.map((name) => [name, name]));
  $("#label").disabled = classes.length === 0;
  const choices = await json("/v1/choices");
  const levels = Object.entries(now.levels).map(([name, nfe]) => [name, `${name} (${nfe} evaluations)`]);
  for (const side of document.querySelectorAll(".side")) {
    fill($(".quality", side), [[OWN, `the model's own (${now.nfe})`], ...levels, [STEPS, "my own steps …"]]);
    fill($(".solver", side), choices.solvers.map((name) => [name, name]));
    fill($(".grid", side), choices.grids.map((name) => [name, name]));
    if (!$(".solver", side).dataset.set) {
      $(".solver", side).value = "dpmpp_2m";
      $(".grid", side).value = "log_snr";
      $(".solver", side).dataset.set = "yes";
    }
    fill($(".model", side), [["", `what serves (${now.version})`]]);
  }
  try {
    const found = (await json("/v1/versions")).data;
    const others = found.map((one) => [one.id, [one.id, ...one.aliases].join(", ")]);
    for (const select of document.querySelectorAll(".model")) fill(select, [["", `what serves (${now.version})`], ...others]);
  } catch (error) {
    // Without a registry there is only what serves.
  }
}

/** The request of one side; both sides share class, seed and number. */
function request(side) {
  const body = { n: Number($("#n").value), seed: Number($("#seed").value), strip: 8 };
  const prompt = $("#prompt").value.trim();
  if (prompt) body.prompt = prompt;
  else if (classes.length) body.class = $("#label").value;
  if ($(".model", side).value) body.model = $(".model", side).value;
  const quality = $(".quality", side).value;
  if (quality === STEPS) {
    body.steps = Number($(".steps", side).value);
    body.solver = $(".solver", side).value;
    body.grid = $(".grid", side).value;
    if ($(".guidance", side).value !== "") body.guidance = Number($(".guidance", side).value);
  } else if (quality !== OWN) body.quality = quality;
  return body;
}

function told(answer, name) {
  const { queued_ms: queued, drawn_ms: drawn } = answer.timing;
  return `${name}${answer.model}: ${answer.nfe} evaluations, ${Math.round(drawn)} ms drawn, ${Math.round(queued)} ms queued`;
}

function figures(answer, what) {
  return answer.data.map((one) => figure(one.b64_json, `seed ${one.seed}`, `${what}, seed ${one.seed}`));
}

function strip(answer) {
  const row = document.createElement("div");
  row.className = "strip";
  row.append(...(answer.data[0].strip || []).map((one) =>
    figure(one.b64_json, `σ ${one.sigma.toPrecision(2)}`, `estimate at noise level ${one.sigma.toPrecision(2)}`)));
  return row;
}

async function draw(event) {
  event.preventDefault();
  if (!$("#form").reportValidity()) return;
  const both = $("#compare").checked, what = $("#prompt").value.trim() || $("#label").value || "image";
  $("#draw").disabled = true;
  $("#draw").textContent = "drawing …";
  $("#message").hidden = true;
  try {
    const asked = [request($("#side-a")), ...(both ? [request($("#side-b"))] : [])];
    const answers = await Promise.all(asked.map((body) => json("/v1/images/generations", body)));
    $("#single").hidden = both;
    $("#versus").hidden = !both;
    if (both) {
      $("#versus .timing").textContent = told(answers[0], "A ") + "; " + told(answers[1], "B ");
      $("#versus .under").replaceChildren(...figures(answers[0], `A: ${what}`));
      $("#versus .over").replaceChildren(...figures(answers[1], `B: ${what}`));
    } else {
      $("#single .timing").textContent = told(answers[0], "");
      $("#single .images").replaceChildren(...figures(answers[0], what));
    }
    $("#strips").hidden = false;
    $("#strips .rows").replaceChildren(...answers.map(strip));
  } catch (error) {
    $("#message").textContent = error.message;
    $("#message").hidden = false;
  } finally {
    $("#draw").disabled = false;
    $("#draw").textContent = "Draw";
  }
}

function compare() {
  const both = $("#compare").checked;
  $("#side-b").hidden = !both;
  $("#side-a legend").textContent = both ? "A" : "How";
}

function start() {
  look().catch((error) => {
    $("#serving").textContent = `the server does not answer: ${error.message}`;
    setTimeout(start, 2000);
  });
}

sides();
$("#form").addEventListener("submit", draw);
$("#compare").addEventListener("change", compare);
$("#divide").addEventListener("input", (event) => {
  $("#versus .stack").style.setProperty("--divide", `${event.target.value}%`);
});
start();
