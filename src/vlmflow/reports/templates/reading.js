// What words read: rows of attention, decoded when asked for. The pieces of the sequence are items;
// those whose attention is in the page have a row.

const reading = {
  shares: null,
  blocks: new Map(), // row -> decoded map, filled on first use

  async open() {
    this.shares = await unpack(head.words.shares);
  },
  // Share of each item in what a row reads; null where the layer has no attention.
  of(number, layer) {
    const share = row(this.shares, "shares", layer * this.rows() + number);
    return share.some((value) => value > 0) ? share : null;
  },
  rows: () => head.words.maps.length,
  hasMap: (number) => head.words.maps[number] !== null,
  async mapOf(number) {
    if (!this.blocks.has(number)) this.blocks.set(number, unpack(head.words.maps[number]));
    return this.blocks.get(number);
  },
};

const itemOf = (number) => head.words.items[number];
const isPicture = ({ kind }) => kind === "picture" || kind === "marks";

function itemText(item) {
  const several = head.pictures.length > 1;
  const name = item.text || (several && item.image >= 0 ? `picture ${item.image + 1}` : "picture");
  return {
    before: "before the picture", picture: name, marks: "marks between its parts",
    earlier: "earlier words", later: "later answer tokens",
  }[item.kind] ?? tokenText(item.text);
}

const ITEM_SERIES = { before: "system", picture: "image", marks: "image", earlier: "user", word: "user", answer: "answer", later: "answer" };

function wordName(number) {
  const item = itemOf(number);
  const text = tokenText(item.text);
  const short = `“${text.length > 32 ? `${text.slice(0, 32)}…` : text}”`;
  return item.kind === "answer" ? `${tokenWords()} ${item.target}, ${short}` : short;
}

// Share of all the pictures, their marks left out, in what a row reads.
function pictureShare(share) {
  return d3.sum(head.words.items, (item, i) => (item.kind === "picture" ? share[i] : 0));
}

// How much of each word's attention goes to the region, or to all pictures: [row][layer], null where
// that is not in the page or the layer has none.
async function readingOf(region) {
  const layers = d3.range(head.layers);
  const weights = region === null ? null : [...weightsOf(region).entries()];
  return Promise.all(d3.range(reading.rows()).map(async (number) => {
    const shares = layers.map((layer) => reading.of(number, layer));
    if (weights === null) return shares.map((share) => (share === null ? null : pictureShare(share)));
    if (!reading.hasMap(number)) return layers.map(() => null);
    const { map, "map.top": tops } = await reading.mapOf(number);
    const width = map.shape[map.shape.length - 1];
    const levels = 2 ** head.words.bits - 1;
    return layers.map((layer) => (shares[layer] === null ? null
      : d3.sum(weights, ([index, weight]) => weight * tops.values[layer] * (map.values[layer * width + index] / levels) ** 2)));
  }));
}
