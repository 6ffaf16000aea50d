// A map as lines around its strongest tokens, which leave the picture below them as it is.

const LEVELS = [[0.5, 1.4, 0.75], [0.25, 3, 1]]; // share of the map inside, width, opacity

// The strongest drawn tokens that together hold a share of what is drawn.
function strongest(tokens, share) {
  const ranked = d3.sort(tokens.map((token) => [token, valueOf(token, shown.values)]).filter(([, value]) => value > 0), ([, value]) => -value);
  const goal = share * d3.sum(ranked, ([, value]) => value);
  const chosen = [];
  let held = 0;
  for (const [token, value] of ranked) {
    if (held >= goal * (1 - 1e-9)) break;
    held += value;
    chosen.push(token);
  }
  return chosen;
}

const keyOf = ({ number, row, column }) => `${number}/${row}/${column}`;

function drawOutlines(context, tokens, place) {
  const scale = window.devicePixelRatio || 1;
  for (const [share, width, opacity] of LEVELS) {
    const chosen = strongest(tokens, share);
    const inside = new Set(chosen.map(keyOf));
    const path = new Path2D();
    for (const token of chosen) {
      const [x, y, w, h] = place(token);
      const open = (row, column) => !inside.has(keyOf({ number: token.number, row: token.row + row, column: token.column + column }));
      const edge = (x0, y0, x1, y1) => { path.moveTo(x0, y0); path.lineTo(x1, y1); };
      if (open(-1, 0)) edge(x, y, x + w, y);
      if (open(1, 0)) edge(x, y + h, x + w, y + h);
      if (open(0, -1)) edge(x, y, x, y + h);
      if (open(0, 1)) edge(x + w, y, x + w, y + h);
    }
    context.lineCap = "square";
    context.globalAlpha = opacity;
    for (const [stroke, extra] of [["#000", 2], [colour(0.78), 0]]) {
      context.strokeStyle = stroke;
      context.lineWidth = (width + extra) * scale;
      context.stroke(path);
    }
  }
  context.globalAlpha = 1;
}
