"""A comparison as a table for a paper: LaTeX with the package booktabs."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vlmflow.escape_invisible import shown
from vlmflow.studies.comparison.rows import UNKNOWN
from vlmflow.studies.comparison.sentences import keep_words, left_out_words
from vlmflow.studies.truncations.sentences import NAME_SHOWN

if TYPE_CHECKING:
    from vlmflow.studies.comparison.comparison import Comparison

_ESCAPES = {
    "\\": r"\textbackslash{}", "{": r"\{", "}": r"\}", "$": r"\$", "&": r"\&", "#": r"\#",
    "%": r"\%", "_": r"\_", "^": r"\textasciicircum{}", "~": r"\textasciitilde{}",
    "<": r"\textless{}", ">": r"\textgreater{}",
}  # fmt: skip

SENTENCE = 400
"""Characters of a sentence, at most."""


def latex(text: str, most: int = NAME_SHOWN) -> str:
    """Write a text, or its first characters, so that LaTeX sets it as it stands."""
    return "".join(_ESCAPES.get(character, character) for character in shown(text, most))


def latex_table(comparison: Comparison) -> str:
    """Write the scores and differences to random tokens; bold where shown to differ."""
    keeps = comparison.keeps
    study = comparison.study
    lines = [
        "% \\usepackage{booktabs}",
        f"\\begin{{tabular}}{{l{'rr' * len(keeps)}}}",
        "\\toprule",
        " & ".join(
            ["", *(rf"\multicolumn{{2}}{{c}}{{keep {latex(keep_words(keep))}}}" for keep in keeps)]
        )
        + r" \\",
        " & ".join(["ranking", *[r"$\Delta$ to random (95\,\%)", "cost"] * len(keeps)]) + r" \\",
        "\\midrule",
    ]
    random_cells = []
    for keep in keeps:
        drawn = comparison.random_rows[keep]
        random_cells += [rf"{100 * drawn.score.value:.1f}\,\%", _cost(drawn.cost)]
    lines.append(" & ".join(["random tokens (score)", *random_cells]) + r" \\")
    for ranking in comparison.rankings:
        cells = [latex(ranking.title) + (r"$^\dagger$" if ranking.is_oracle else "")]
        for keep in keeps:
            row = comparison.row(ranking, keep)
            value = _signed(row.gain.value)
            value = value if row.verdict == UNKNOWN else rf"\textbf{{{value}}}"
            ends = f"({_signed(row.gain.low)} to {_signed(row.gain.high)})"
            cells += [f"{value} {ends}", _cost(row.cost)]
        lines.append(" & ".join(cells) + r" \\")
    name = str(study.about["model"]["name"])
    lines += [
        "\\bottomrule",
        "\\end{tabular}",
        f"% {latex(study.task.name)} on {latex(name)}, layer {comparison.layer}, "
        f"n = {comparison.count}, untouched {100 * comparison.untouched.value:.1f} \\%;",
        f"% points; bold: differs from random tokens ({comparison.draws} draws) at 5 \\% after "
        f"Holm's correction for {len(comparison.rows)} tests; $^\\dagger$ looks at the answer.",
        *(f"% {latex(words, SENTENCE)}" for words in left_out_words(comparison.left_out)),
    ]
    return "\n".join(lines) + "\n"


def _signed(share: float) -> str:
    text = f"{100 * share:+.1f}"
    return "0.0" if text[1:] == "0.0" else f"${text}$"


def _cost(cost: float | None) -> str:
    return "" if cost is None else f"{cost:.2f}"
