// The measured numbers of a result, decoded when asked for.

const numbersOf = (headOf) => ({
  curves: null,
  maps: new Map(), // target -> decoded block, filled on first use

  get head() {
    return headOf();
  },
  async open() {
    this.curves = await unpack(this.head.curves);
  },
  // Without gradients no saliency was measured.
  hasSaliency() {
    return "saliency_sum" in this.curves;
  },
  hasMap(target) {
    return target < this.head.maps.length;
  },
  async mapsOf(target) {
    if (!this.maps.has(target)) this.maps.set(target, unpack(this.head.maps[target]));
    return this.maps.get(target);
  },
  layersOf(signal) {
    return this.curves[`flags.${signal}`].shape[0];
  },
  flag(signal, layer, target) {
    return this.curves[`flags.${signal}`].values[layer * this.head.charted + target];
  },
  // Shares of the four segments, or null where the layer has no attention.
  attention(layer, target) {
    const share = row(this.curves, "attention_share", layer * this.head.charted + target);
    return share.some((value) => value > 0) ? share : null;
  },
  // S from the four segments into "user" or "answer"; null where the layer has no attention.
  saliency(layer, target, figureName, destination) {
    const number = (layer * this.head.charted + target) * 2 + (destination === "answer" ? 1 : 0);
    if (this.attention(layer, target) === null) return null;
    return row(this.curves, `saliency_${figureName}`, number);
  },
  convergence(column, signal, layer, target) {
    if (this.flag(signal, layer, target) !== 0) return null;
    return row(this.curves, `${column}.${signal}`, layer)[target];
  },
});

const numbers = numbersOf(() => head); // of the result that the page is about
