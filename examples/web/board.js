const WIDTH = 22; // of a stroke, in pixels of the canvas

/** Drawing on a canvas by pointer and by keyboard; calls `changed` after each stroke, `said` with what the pen does. */
export function board(canvas, changed, said) {
  const context = canvas.getContext("2d", { willReadFrequently: true });
  const middle = { x: canvas.width / 2, y: canvas.height / 2 };
  let pen = { ...middle };
  let down = false; // by keyboard
  const strokes = new Map(); // pointer -> where it is

  function line(from, to) {
    Object.assign(context, { strokeStyle: "#fff", lineWidth: WIDTH, lineCap: "round", lineJoin: "round" });
    context.beginPath();
    context.moveTo(from.x, from.y);
    context.lineTo(to.x, to.y);
    context.stroke();
  }

  function at(event) {
    const box = canvas.getBoundingClientRect();
    return {
      x: ((event.clientX - box.left) * canvas.width) / box.width,
      y: ((event.clientY - box.top) * canvas.height) / box.height,
    };
  }

  function clear() {
    context.fillStyle = "#000";
    context.fillRect(0, 0, canvas.width, canvas.height);
    strokes.clear();
    down = false;
    pen = { ...middle };
    said("");
    changed();
  }

  canvas.addEventListener("pointerdown", (event) => {
    if (event.button) return;
    canvas.setPointerCapture(event.pointerId);
    strokes.set(event.pointerId, at(event));
    line(at(event), at(event));
    changed();
  });
  canvas.addEventListener("pointermove", (event) => {
    if (!strokes.has(event.pointerId)) return;
    const steps = event.getCoalescedEvents?.() ?? [];
    for (const step of steps.length ? steps : [event]) {
      line(strokes.get(event.pointerId), at(step));
      strokes.set(event.pointerId, at(step));
    }
    changed();
  });
  for (const end of ["pointerup", "pointercancel"])
    canvas.addEventListener(end, (event) => strokes.delete(event.pointerId) && changed());

  const moves = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
  canvas.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    if (event.key === "Escape") return clear();
    if (event.key === " ") {
      down = !down;
      said(down ? "Pen down" : "Pen up");
      if (down) line(pen, pen), changed();
    } else if (moves[event.key]) {
      const step = 10;
      const to = {
        x: Math.min(canvas.width - WIDTH, Math.max(WIDTH, pen.x + step * moves[event.key][0])),
        y: Math.min(canvas.height - WIDTH, Math.max(WIDTH, pen.y + step * moves[event.key][1])),
      };
      if (down) line(pen, to), changed();
      else said(`Pen up at ${Math.round((100 * to.x) / canvas.width)} % across, ${Math.round((100 * to.y) / canvas.height)} % down`);
      pen = to;
    } else return;
    event.preventDefault();
  });
  return { clear };
}
