// Graphs beside one base in onnxruntime-web: node beside.mjs BASE INPUTS.json GRAPH... Prints the first output of each.
// The base is read once and given to every session.
import { readFile } from "node:fs/promises";
import path from "node:path";
import * as ort from "onnxruntime-web";

ort.env.wasm.numThreads = 1;
const [base, inputs, ...graphs] = process.argv.slice(2);
const data = new Uint8Array(await readFile(base));
const { shape, values } = JSON.parse(await readFile(inputs, "utf8"));
const found = [];
for (const graph of graphs) {
  const session = await ort.InferenceSession.create(new Uint8Array(await readFile(graph)), {
    externalData: [{ path: path.basename(base), data }],
  });
  const input = new ort.Tensor("int64", BigInt64Array.from(values.map(BigInt)), shape);
  const fed = session.inputNames.length ? { [session.inputNames[0]]: input } : {};
  const given = await session.run(fed);
  found.push(session.outputNames.map((name) => [...given[name].data]));
}
console.log(JSON.stringify(found));
