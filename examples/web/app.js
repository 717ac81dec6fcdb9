import * as ort from "onnxruntime-web/wasm";
import { board } from "./board.js";
import { metadata } from "./metadata.js";
import { picture } from "./picture.js";

ort.env.wasm.wasmPaths = "./";
ort.env.wasm.numThreads = 1; // more would need headers that a static server does not send

const MODEL = "digit.onnx";
const $ = (id) => document.getElementById(id);

/** A session on the bytes of a model; on the page's console too. */
export const open = (bytes) => ort.InferenceSession.create(bytes, { graphOptimizationLevel: "all" });

function show(probabilities, labels) {
  const best = probabilities ? probabilities.indexOf(Math.max(...probabilities)) : -1;
  $("answer").textContent = best < 0 ? "\u00a0" : `${labels[best]}, ${Math.round(100 * probabilities[best])} %`;
  $("classes").replaceChildren(
    ...labels.map((label, i) => {
      const item = document.createElement("li");
      const share = probabilities ? 100 * probabilities[i] : 0;
      item.className = i === best ? "best" : "";
      item.innerHTML = '<span></span><div class="bar"><span></span></div><output></output>';
      item.children[0].textContent = label;
      item.querySelector(".bar span").style.width = `${share}%`;
      item.children[2].textContent = probabilities ? `${share.toFixed(1)} %` : "";
      return item;
    }),
  );
}

function softmax(scores) {
  const top = Math.max(...scores);
  const powers = scores.map((s) => Math.exp(s - top));
  const sum = powers.reduce((a, b) => a + b);
  return powers.map((p) => p / sum);
}

async function start() {
  const response = await fetch(MODEL);
  if (!response.ok) throw new Error(`the model ${MODEL} is not there (${response.status}): build the page again`);
  const bytes = new Uint8Array(await response.arrayBuffer());
  const facts = metadata(bytes);
  const told = (key, otherwise) => (facts[key] ? JSON.parse(facts[key]) : otherwise);
  const shape = told("input_shape", []);
  if (shape.join() !== "1,28,28") throw new Error(`a model here takes images of [1,28,28], this one [${shape}]`);
  const [[mean], [std]] = [told("mean", [0]), told("std", [1])];
  const session = await open(bytes); // loads the runtime too
  if (session.inputNames.join() !== "input" || session.outputNames.join() !== "output")
    throw new Error(`a model here goes from "input" to "output", this one from ${session.inputNames} to ${session.outputNames}`);
  const blank = new ort.Tensor("float32", new Float32Array(28 * 28), [1, ...shape]);
  const classes = (await session.run({ input: blank })).output.size;
  const labels = told("labels", Array.from({ length: classes }, (_, i) => String(i)));
  const began = performance.now();
  await (await open(bytes)).release();
  const took = Math.round(performance.now() - began);
  $("size").textContent =
    `The model took ${bytes.length.toLocaleString("en")} bytes. It unfolds itself in ${took} ms.`;

  let wanted = 0;
  async function recognise() {
    const pixels = picture($("canvas"));
    const turn = ++wanted;
    if (!pixels) return show(null, labels);
    const input = new ort.Tensor("float32", pixels.map((p) => (p / 255 - mean) / std), [1, ...shape]);
    const { output } = await session.run({ input });
    if (turn === wanted) show(softmax([...output.data]), labels);
  }
  let asked = false;
  const changed = () => {
    if (asked) return;
    asked = true;
    requestAnimationFrame(() => ((asked = false), recognise().catch(fail)));
  };
  const { clear } = board($("canvas"), changed, (text) => ($("pen").textContent = text));
  $("clear").addEventListener("click", () => (clear(), $("canvas").focus()));
  clear();
  document.documentElement.dataset.ready = "yes";
}

function fail(error) {
  if (!document.documentElement.dataset.ready) $("size").textContent = "";
  $("error").hidden = false;
  $("error").textContent = `This page cannot go on: ${error.message}`;
}

globalThis.subcompress = { open, metadata };
start().catch(fail);
