"""What an answer's tokens are worth with the picture, and without any of its tokens."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from vlmflow.errors import InputError


@dataclass(frozen=True, eq=False)
class PictureEffect:
    """The probability of every answer token, with and without the picture.

    "Without" is the same prompt with all image tokens removed before the first layer, as the
    control "no image" of studies; the answer's tokens before each one are given.

    Parameters
    ----------
    with_picture, without_picture : (T,) float32
        Probabilities.
    likeliest : tuple of T str
        The token that is likeliest without the picture, in each place.
    """

    with_picture: npt.NDArray[np.float32]
    without_picture: npt.NDArray[np.float32]
    likeliest: tuple[str, ...]

    def __post_init__(self) -> None:
        for name in ("with_picture", "without_picture"):
            values = np.asarray(getattr(self, name), dtype=np.float32)
            if values.shape != (len(self.likeliest),) or not ((values >= 0) & (values <= 1)).all():
                raise InputError(f"{name} must hold a probability for each of the answer's tokens")
            values.setflags(write=False)
            object.__setattr__(self, name, values)
        object.__setattr__(self, "likeliest", tuple(map(str, self.likeliest)))

    def whole(self) -> tuple[float, float]:
        """Return the probability of the whole answer, with and without the picture."""
        return float(np.prod(self.with_picture, dtype=np.float64)), float(
            np.prod(self.without_picture, dtype=np.float64)
        )
