// The finding in words, for whatever target is chosen, and the box that it speaks of.

const verdictOf = (target) => head.verdicts[Math.min(target, head.verdicts.length - 1)];

function showVerdict() {
  const { headline, picture } = verdictOf(choice.target);
  find("headline").textContent = headline;
  find("picture-says").textContent = picture;
  find("box-note").hidden = verdictOf(choice.target).box === null;
}

// A dashed line around what the headline calls the place that was read.
function drawBox(context, canvas, picture, image) {
  const { box } = verdictOf(choice.target);
  if (box === null || box[0] !== image) return;
  const scale = window.devicePixelRatio || 1;
  const across = canvas.width / picture.width, down = canvas.height / picture.height;
  const [x0, y0, x1, y1] = [box[1] * across, box[2] * down, box[3] * across, box[4] * down];
  for (const [colour, width] of [["#000", 3.4], ["#fff", 1.7]]) {
    context.strokeStyle = colour;
    context.lineWidth = width * scale;
    context.setLineDash([7 * scale, 5 * scale]);
    context.strokeRect(x0, y0, x1 - x0, y1 - y0);
  }
  context.setLineDash([]);
}
