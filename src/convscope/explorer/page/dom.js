// What every part of the page uses to make elements and paint images.

/**
 * Make an element; text is always text, never markup. Attributes that are false, null or undefined are left
 * out; those that are functions listen to the event of their name.
 * @param {string} tag
 * @param {Record<string, unknown>} [attributes]
 * @param {...(Node | string | null | undefined)} children
 * @returns {any}
 */
export function element(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (typeof value === "function") made.addEventListener(name, /** @type {EventListener} */ (value));
    else if (value === true) made.setAttribute(name, "");
    else if (value !== false && value !== null && value !== undefined) made.setAttribute(name, String(value));
  }
  for (const child of children) if (child !== null && child !== undefined) made.append(child);
  return made;
}

/**
 * Paint uint8 pixels (h, w, c), grey or RGB, into a canvas of that many pixels.
 * @param {HTMLCanvasElement} canvas
 * @param {ArrayLike<number>} pixels
 * @param {{height: number, width: number, channels: number}} size
 */
export function paint(canvas, pixels, { height, width, channels }) {
  canvas.width = width;
  canvas.height = height;
  const context = /** @type {CanvasRenderingContext2D} */ (canvas.getContext("2d"));
  const image = context.createImageData(width, height);
  for (let pixel = 0; pixel < height * width; pixel++) {
    for (let channel = 0; channel < 3; channel++)
      image.data[4 * pixel + channel] = pixels[pixel * channels + Math.min(channel, channels - 1)];
    image.data[4 * pixel + 3] = 255;
  }
  context.putImageData(image, 0, 0);
}
