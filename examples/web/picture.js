const SIDE = 28; // of the pictures that the model knows
const INSIDE = 20; // of the square in them that holds the digit

/** The pixels of a canvas as MNIST has them, (28, 28) of 0 to 255, or null where nothing is drawn.
 *
 * The drawing is scaled into a square of 20 pixels and put with its center of mass in the middle (LeCun et al. 1998).
 */
export function picture(canvas) {
  const { width, height } = canvas;
  const ink = canvas.getContext("2d").getImageData(0, 0, width, height).data;
  let [left, top, right, bottom] = [width, height, -1, -1];
  for (let y = 0; y < height; y++)
    for (let x = 0; x < width; x++)
      if (ink[4 * (y * width + x)] > 40) {
        left = Math.min(left, x);
        right = Math.max(right, x);
        top = Math.min(top, y);
        bottom = Math.max(bottom, y);
      }
  if (right < 0) return null;
  const [w, h] = [right - left + 1, bottom - top + 1];
  const scale = INSIDE / Math.max(w, h);
  const scaled = shrunk(canvas, left, top, w, h, Math.max(1, Math.round(w * scale)), Math.max(1, Math.round(h * scale)));
  return centered(scaled);
}

function shrunk(canvas, left, top, w, h, width, height) {
  const small = new OffscreenCanvas(width, height);
  const context = small.getContext("2d", { willReadFrequently: true });
  context.imageSmoothingEnabled = true;
  context.imageSmoothingQuality = "high";
  context.drawImage(canvas, left, top, w, h, 0, 0, width, height);
  const data = context.getImageData(0, 0, width, height).data;
  const pixels = new Float32Array(width * height);
  for (let i = 0; i < pixels.length; i++) pixels[i] = data[4 * i];
  return { pixels, width, height };
}

function centered({ pixels, width, height }) {
  let [mass, mx, my] = [0, 0, 0];
  pixels.forEach((value, i) => {
    mass += value;
    mx += value * ((i % width) + 0.5);
    my += value * (Math.floor(i / width) + 0.5);
  });
  const at = (middle, size) => Math.min(SIDE - size, Math.max(0, Math.round(SIDE / 2 - middle)));
  const [x0, y0] = [at(mx / mass, width), at(my / mass, height)];
  const found = new Float32Array(SIDE * SIDE);
  pixels.forEach((value, i) => {
    found[(y0 + Math.floor(i / width)) * SIDE + x0 + (i % width)] = value;
  });
  return found;
}
