"use strict";
// The small page: files are sent to the server, answers are shown. All text goes in as text, never as HTML.
const { labels, keeps } = JSON.parse(document.getElementById("labels").textContent);
const files = document.getElementById("files");
const gradcam = document.getElementById("gradcam");
const state = document.getElementById("state");
const results = document.getElementById("results");

function element(tag, text, className) {
  const made = document.createElement(tag);
  if (text !== undefined) made.textContent = text;
  if (className) made.className = className;
  return made;
}

function readAddress(file) {
  return new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.onload = () => resolve(reader.result);
    reader.onerror = () => reject(reader.error);
    reader.readAsDataURL(file);
  });
}

async function ask(address, options) {
  const answer = await fetch(address, options);
  const value = await answer.json();
  if (!answer.ok && !value.failures) throw new Error(typeof value.detail === "string" ? value.detail : answer.statusText);
  return value;
}

function correction(file, predicted) {
  const choice = element("select");
  choice.setAttribute("aria-label", `What ${file.name} really shows`);
  choice.append(new Option("It is really …", ""));
  for (const label of labels) choice.append(new Option(label, label));
  choice.addEventListener("change", async () => {
    if (!choice.value) return;
    choice.disabled = true;
    try {
      const body = JSON.stringify({ image: await readAddress(file), label: choice.value });
      const { kept } = await ask("corrections", { method: "POST", headers: { "Content-Type": "application/json" }, body });
      state.textContent = `Kept: ${file.name} shows ${choice.value}, not ${predicted}. ${kept} corrections in all.`;
    } catch (error) {
      state.textContent = error.message;
      choice.disabled = false;
    }
  });
  return choice;
}

function show(file, one) {
  const row = element("div", undefined, "result");
  const picture = element("img");
  picture.alt = "";
  picture.src = URL.createObjectURL(file);
  row.append(picture);
  if (one.gradcam) {
    const map = element("img");
    map.alt = `Where the evidence for ${one.label} lies`;
    map.src = one.gradcam;
    row.append(map);
  }
  const words = element("div");
  words.append(element("p", one.label ?? "(no label)", "label"), element("p", one.file));
  for (const { label, probability } of one.ranked) {
    const line = element("p", `${label} ${(100 * probability).toFixed(1)} % `);
    const meter = element("meter");
    meter.value = probability;
    line.append(meter);
    words.append(line);
  }
  for (const warning of one.warnings) words.append(element("p", warning, "warning"));
  if (keeps) words.append(correction(file, one.label));
  row.append(words);
  results.append(row);
}

async function predict() {
  const chosen = [...files.files];
  if (!chosen.length) return;
  const form = new FormData();
  for (const file of chosen) form.append("files", file, file.name);
  state.textContent = "Predicting …";
  results.replaceChildren();
  try {
    const { predictions, failures } = await ask(gradcam.checked ? "predict?gradcam=1" : "predict", { method: "POST", body: form });
    const unread = failures.map((one) => one.reason);
    state.textContent = [`${predictions.length} predicted.`, ...unread].join(" ");
    for (const one of predictions) show(chosen[one.index], one);
  } catch (error) {
    state.textContent = error.message;
  }
}

files.addEventListener("change", predict);
gradcam.addEventListener("change", predict);
