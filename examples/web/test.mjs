// The built page in a browser: CHROME=/usr/bin/chromium node test.mjs [--weights FOLDER ...] [--pictures FOLDER]
//
// Digits are drawn by mouse, by touch on a phone's screen and by keyboard. FOLDER holds graph.onnx, which gives weights,
// and expected.bin, their bytes end to end. Prints what it saw as JSON; exits with 1 where something is wrong.
import assert from "node:assert/strict";
import { readFile } from "node:fs/promises";
import { createServer } from "node:http";
import path from "node:path";
import { parseArgs } from "node:util";
import puppeteer from "puppeteer-core";

const dist = path.join(import.meta.dirname, "dist");
const { values: options } = parseArgs({ options: { weights: { type: "string", multiple: true, default: [] }, pictures: { type: "string" } } });
const TYPES = { html: "text/html", js: "text/javascript", mjs: "text/javascript", css: "text/css", wasm: "application/wasm" };

const server = createServer(async (request, response) => {
  const name = path.basename(new URL(request.url, "http://localhost").pathname) || "index.html";
  try {
    const data = await readFile(path.join(dist, name));
    response.writeHead(200, { "content-type": TYPES[name.split(".").pop()] ?? "application/octet-stream" }).end(data);
  } catch {
    response.writeHead(404).end();
  }
});
await new Promise((done) => server.listen(0, "127.0.0.1", done));
const address = `http://127.0.0.1:${server.address().port}/`;
const browser = await puppeteer.launch({
  executablePath: process.env.CHROME ?? "/usr/bin/chromium",
  args: ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update"],
});
const seen = {};
const STROKES = {
  // in hundredths of the board
  0: [[50, 15], [30, 25], [24, 50], [30, 75], [50, 85], [70, 75], [76, 50], [70, 25], [50, 15]],
  1: [[50, 15], [50, 85]],
  7: [[25, 20], [75, 20], [45, 85]],
};

async function page(viewport) {
  const found = await browser.newPage();
  found.on("pageerror", (error) => (seen.error = error.message));
  await found.setViewport(viewport);
  await found.goto(address);
  await found.waitForSelector("html[data-ready]", { timeout: 30_000 });
  return found;
}

const answer = (page) => page.$eval("#answer", (e) => e.textContent.trim());

async function recognised(page, digit) {
  await page.waitForFunction((d) => document.getElementById("answer").textContent.startsWith(`${d},`), { timeout: 5_000 }, digit)
    .catch(async () => assert.fail(`drew ${digit}, the page says ${await answer(page)}`));
  const shares = await page.$$eval("#classes output", (all) => all.map((o) => parseFloat(o.textContent)));
  assert.equal(shares.length, 10);
  assert.ok(Math.abs(shares.reduce((a, b) => a + b) - 100) < 1, `probabilities add up: ${shares}`);
  return `${await answer(page)}`;
}

async function fits(page) {
  const { wide, high } = await page.evaluate(() => ({
    wide: document.documentElement.scrollWidth - innerWidth,
    high: document.getElementById("answer").getBoundingClientRect().bottom - innerHeight,
  }));
  assert.ok(wide <= 0, `nothing lies beyond the right edge: ${wide} px do`);
  assert.ok(high <= 0, `the board and the answer are on the screen: ${high} px are not`);
}

try {
  // A desk: the mouse.
  const desk = await page({ width: 1000, height: 720 });
  await fits(desk);
  seen.size = await desk.$eval("#size", (e) => e.textContent);
  const box = await (await desk.$("#canvas")).boundingBox();
  const spot = ([x, y], b) => [b.x + (x / 100) * b.width, b.y + (y / 100) * b.height];
  for (const [digit, stroke] of Object.entries(STROKES)) {
    await desk.click("#clear");
    await desk.mouse.move(...spot(stroke[0], box));
    await desk.mouse.down();
    for (const point of stroke.slice(1)) await desk.mouse.move(...spot(point, box), { steps: 8 });
    await desk.mouse.up();
    seen[`mouse ${digit}`] = await recognised(desk, digit);
  }
  if (options.pictures) await desk.screenshot({ path: path.join(options.pictures, "desk.png") });

  // The keyboard alone.
  const keys = await page({ width: 1000, height: 720 });
  const focused = () => keys.evaluate(() => document.activeElement.id);
  const empty = () => keys.waitForFunction(() => !document.getElementById("answer").textContent.trim());
  await keys.keyboard.press("Tab");
  assert.equal(await focused(), "canvas");
  for (let i = 0; i < 10; i++) await keys.keyboard.press("ArrowUp");
  await keys.keyboard.press("Space");
  for (let i = 0; i < 20; i++) await keys.keyboard.press("ArrowDown");
  seen["keyboard 1"] = await recognised(keys, 1);
  await keys.keyboard.press("Escape");
  await empty();
  await keys.keyboard.press("Space");
  await keys.waitForFunction(() => document.getElementById("answer").textContent.trim());
  await keys.keyboard.press("Tab");
  assert.equal(await focused(), "clear");
  await keys.keyboard.press("Enter");
  await empty();

  // A phone: touch, in the dark.
  const phone = await page({ width: 360, height: 640, deviceScaleFactor: 2, hasTouch: true, isMobile: true });
  await phone.emulateMediaFeatures([{ name: "prefers-color-scheme", value: "dark" }]);
  await fits(phone);
  const small = await (await phone.$("#canvas")).boundingBox();
  await phone.touchscreen.touchStart(...spot(STROKES[7][0], small));
  for (const [i, point] of STROKES[7].slice(1).entries())
    for (let k = 1; k <= 8; k++) {
      const from = STROKES[7][i];
      await phone.touchscreen.touchMove(...spot([0, 1].map((c) => from[c] + ((point[c] - from[c]) * k) / 8), small));
    }
  await phone.touchscreen.touchEnd();
  seen["touch 7"] = await recognised(phone, 7);
  assert.ok((await phone.$eval("#clear", (e) => e.getBoundingClientRect().height)) >= 44, "a finger finds the button");
  if (options.pictures) await phone.screenshot({ path: path.join(options.pictures, "phone.png"), fullPage: true });

  // A model that is not there is said, not shown as a blank page.
  const lost = await browser.newPage();
  await lost.setRequestInterception(true);
  lost.on("request", (r) => (r.url().endsWith(".onnx") ? r.respond({ status: 404 }) : r.continue()));
  await lost.goto(address);
  await lost.waitForSelector("#error:not([hidden])");
  seen.lost = await lost.$eval("#error", (e) => e.textContent);

  seen.weights = seen.different = 0;
  for (const folder of options.weights) {
    const graph = (await readFile(path.join(folder, "graph.onnx"))).toString("base64");
    const expected = await readFile(path.join(folder, "expected.bin"));
    const found = await desk.evaluate(async (base64) => {
      const bytes = Uint8Array.from(atob(base64), (c) => c.charCodeAt(0));
      const session = await globalThis.subcompress.open(bytes);
      const outputs = await session.run({});
      const parts = session.outputNames.map((name) => new Uint8Array(outputs[name].data.slice().buffer));
      const texts = [];
      for (const part of parts)
        for (let at = 0; at < part.length; at += 30_000) texts.push(String.fromCharCode(...part.subarray(at, at + 30_000)));
      return btoa(texts.join(""));
    }, graph);
    const bytes = Buffer.from(found, "base64");
    assert.equal(bytes.length, expected.length);
    seen.weights += bytes.length / 4;
    seen.different += bytes.filter((byte, i) => byte !== expected[i]).length;
  }
  assert.equal(seen.different, 0);
  assert.equal(seen.error, undefined);
} catch (error) {
  seen.failed = error.message;
  process.exitCode = 1;
} finally {
  console.log(JSON.stringify(seen));
  await browser.close();
  server.close();
}
