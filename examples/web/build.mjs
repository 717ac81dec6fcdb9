// dist/: the page, its script in one file, the model, and ONNX Runtime's WebAssembly.
import { build } from "esbuild";
import { cp, mkdir, rm, stat } from "node:fs/promises";
import { createRequire } from "node:module";
import path from "node:path";

const here = import.meta.dirname;
const dist = path.join(here, "dist");
await rm(dist, { recursive: true, force: true });
await mkdir(dist);
await build({
  entryPoints: [path.join(here, "app.js")],
  bundle: true,
  format: "esm",
  minify: true,
  outdir: dist,
  conditions: ["onnxruntime-web-use-extern-wasm"],
  legalComments: "linked",
});
const runtime = path.dirname(createRequire(import.meta.url).resolve("onnxruntime-web/wasm"));
for (const name of ["ort-wasm-simd-threaded.mjs", "ort-wasm-simd-threaded.wasm"])
  await cp(path.join(runtime, name), path.join(dist, name));
for (const name of ["index.html", "style.css", "digit.onnx"]) await cp(path.join(here, name), path.join(dist, name));
console.log(`dist/: open it through any static server; the model is ${(await stat(path.join(dist, "digit.onnx"))).size} bytes`);
