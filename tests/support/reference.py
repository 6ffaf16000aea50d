"""The slow way: eager attention, every N x N matrix kept with its gradient, loops and plain masks.

Nothing here uses vlmflow but the layout: it is what the fast way has to agree with.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from vlmflow.lvlm.layout import Segment, TokenLayout


@dataclass
class Reference:
    """Full matrices (L, heads, N, N) per target, features (L, N, C) and their gradients."""

    attention: np.ndarray
    gradients: list[np.ndarray]
    features: np.ndarray
    feature_gradients: list[np.ndarray]
    layout: TokenLayout

    def share(self, token: int) -> np.ndarray:
        """Attention flow of one answer token, (L, 4)."""
        row = int(self.layout.answer_positions[token]) - 1
        shares = np.zeros((len(self.attention), 4))
        for layer, matrix in enumerate(self.attention):
            for position, segment in enumerate(self.layout.segments):
                if segment != Segment.PAD:
                    shares[layer, segment] += matrix[:, row, position].mean()
        return shares

    def attention_map(self, token: int) -> np.ndarray:
        """(L, P)."""
        row = int(self.layout.answer_positions[token]) - 1
        return self.attention[:, :, row, self.layout.image_positions].mean(1)

    def saliency(self, target: int) -> np.ndarray:
        """I_l, (L, N, N)."""
        return np.abs((self.attention * self.gradients[target]).sum(1))

    def text_rows(self) -> list[int]:
        answer = [position - 1 for position in self.layout.answer_positions]
        user = [int(p) for p in np.flatnonzero(self.layout.segments == Segment.USER)]
        return sorted({*user, *answer})

    def saliency_map(self, target: int) -> np.ndarray:
        """(L, P)."""
        flow = self.saliency(target)
        return sum(flow[:, row][:, self.layout.image_positions] for row in self.text_rows())

    def segment_saliency(self, target: int) -> tuple[np.ndarray, np.ndarray]:
        """Mean and sum, (L, 2, 4) each, pair by pair."""
        answer = {int(position) - 1 for position in self.layout.answer_positions}
        flow = self.saliency(target)
        total, pairs = np.zeros((len(flow), 2, 4)), np.zeros((2, 4))
        for row in self.text_rows():
            destination = int(row in answer)
            for column in range(row):
                source = self.layout.segments[column]
                if source != Segment.PAD:
                    total[:, destination, source] += flow[:, row, column]
                    pairs[destination, source] += 1
        return total / np.maximum(pairs, 1), total

    def llava_cam(self, target: int) -> np.ndarray:
        """(L, P)."""
        image = self.layout.image_positions
        heats = []
        for features, gradient in zip(self.features, self.feature_gradients[target], strict=True):
            alpha = gradient[image].mean(0)
            heats.append(np.maximum(0, (alpha[None] * features[image]).sum(1)))
        return np.stack(heats)

    def llava_cam_terms(self, target: int) -> np.ndarray:
        """Largest sum of ABSOLUTE terms ``alpha_k A_k`` of each layer, (L,): what rounds."""
        image = self.layout.image_positions
        pairs = zip(self.features, self.feature_gradients[target], strict=True)
        return np.stack([np.abs(g[image].mean(0) * f[image]).sum(1).max() for f, g in pairs])


def measure_slowly(model, layers, inputs, layout, target, hook) -> Reference:
    """Backward through a model with EAGER attention, once per target; batch of one.

    ``hook`` names the submodule of each layer that features are read at. Target 0 is the whole
    answer with a backward pass of its own.
    """
    assert model.config.get_text_config()._attn_implementation == "eager"
    seen: dict[int, torch.Tensor] = {}
    handles = [
        layer.get_submodule(hook).register_forward_hook(
            lambda _module, _args, output, index=index: seen.__setitem__(index, output)
        )
        for index, layer in enumerate(layers)
    ]
    output = model(**inputs, output_attentions=True, use_cache=False)
    for handle in handles:
        handle.remove()
    features = [seen[index] for index in range(len(layers))]
    scores = []
    for position in layout.answer_positions:
        token = inputs["input_ids"][0, position]
        logits = output.logits[0, position - 1].float()
        others = torch.cat([logits[:token], logits[token + 1 :]])
        scores.append(
            {
                "logit": logits[token],
                "logprob": logits[token] - logits.logsumexp(0),
                "margin": logits[token] - others.max(),
            }[target]
        )
    attentions = getattr(output, "language_model_outputs", output).attentions
    with_attention = [index for index, layer in enumerate(layers) if hasattr(layer, "self_attn")]
    assert len(with_attention) == len(attentions)

    def first(tensor):
        """The only row of the batch; some layers have no axis for it inside."""
        return tensor if tensor.ndim == 2 else tensor[0]

    def in_all_layers(matrices):
        """Zeros where a layer has no attention."""
        zeros = np.zeros_like(matrices[0])
        of_layer = dict(zip(with_attention, matrices, strict=True))
        return np.stack([of_layer.get(index, zeros) for index in range(len(layers))])

    attention_gradients, feature_gradients = [], []
    for scalar in [sum(scores), *scores]:
        wanted = [*attentions, *features]
        gradients = torch.autograd.grad(scalar, wanted, retain_graph=True)
        grads = [first(gradient).double().numpy() for gradient in gradients]
        attention_gradients.append(in_all_layers(grads[: len(with_attention)]))
        feature_gradients.append(np.stack(grads[len(with_attention) :]))
    return Reference(
        attention=in_all_layers([a[0].detach().double().numpy() for a in attentions]),
        gradients=attention_gradients,
        features=np.stack([first(f).detach().double().numpy() for f in features]),
        feature_gradients=feature_gradients,
        layout=layout,
    )
