// Building the page's own elements, and reading the packed numbers.
// Texts reach the document through textContent only, so that none of them can be markup.

function make(tag, properties = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name.startsWith("aria-") || name === "role" || name === "for" || name === "scope") {
      element.setAttribute(name, value);
    } else {
      element[name] = value;
    }
  }
  element.append(...children); // append() turns strings into text nodes
  return element;
}

const find = (id) => document.getElementById(id);

// What listens to more than the page's own elements listens until it is closed.
const closing = new AbortController();

function onResize(element, show) {
  const observer = new ResizeObserver(show);
  observer.observe(element);
  closing.signal.addEventListener("abort", () => observer.disconnect());
}

const KINDS = { uint8: Uint8Array, uint16: Uint16Array, int8: Int8Array, int32: Int32Array, float32: Float32Array };

async function unpack(block) {
  const text = atob(block.bytes);
  const bytes = Uint8Array.from(text, (character) => character.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  const buffer = await new Response(stream).arrayBuffer();
  const arrays = {};
  for (const [name, [kind, shape, offset]] of Object.entries(block.index)) {
    const size = shape.reduce((product, length) => product * length, 1);
    arrays[name] = { values: new KINDS[kind](buffer, offset, size), shape };
  }
  return arrays;
}

// One row of square-root coded values: top * (code / levels) ** 2.
function row(arrays, name, number, bits = 0) {
  const { values, shape } = arrays[name];
  const length = shape[shape.length - 1];
  const levels = 2 ** (bits || 8 * values.BYTES_PER_ELEMENT) - 1;
  const top = arrays[`${name}.top`].values[number];
  const out = new Float32Array(length);
  for (let i = 0; i < length; i++) {
    const root = values[number * length + i] / levels;
    out[i] = top * root * root;
  }
  return out;
}
