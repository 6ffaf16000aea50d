"""CIDEr of captions, by the COCO caption evaluation (pycocoevalcap)."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from shutil import which

from vlmflow.errors import InputError
from vlmflow.tasks.base import TaskSample
from vlmflow.tasks.metrics.base import Metric
from vlmflow.tasks.metrics.chair import chair
from vlmflow.tasks.metrics.coco_objects import coco_mentions

_NO_EXTRA = 'CIDEr needs the package "pycocoevalcap"; run: pip install "vlmflow[data]"'
_NO_JAVA = (
    "CIDEr's tokenizer needs Java, and {}; install a Java runtime (on Debian: "
    "apt install default-jre-headless)"
)


class Cider(Metric):
    """CIDEr-D (Vedantam et al., CVPR 2015) against all reference captions, in the COCO setting.

    Words weigh by how rare they are among the references of all samples that are scored together:
    the figure depends on which ones those are, means little for a few, and is 0 for one. Published
    tables give 100 times the mean score; one caption's lies between 0 and 10.

    Raises
    ------
    InputError
        On construction, if ``pycocoevalcap`` or Java is missing or does not work.
    """

    name = "CIDEr"
    by_itself = False

    def __init__(self) -> None:
        _try(which("java"))

    def score(self, sample: TaskSample, answer: str) -> float:
        """Refuse: one caption has no CIDEr."""
        raise InputError(
            f"CIDEr of one caption ({answer!r:.60} for sample {sample.key}) is not defined; score "
            "all captions together with scores(samples, answers)"
        )

    def scores(self, samples: Sequence[TaskSample], answers: Sequence[str]) -> list[float]:
        """Score every caption against the references of all."""
        from pycocoevalcap.cider.cider import Cider as Scorer

        if not samples:
            return []
        ends = [0]
        texts: list[str] = []
        for sample, answer in zip(samples, answers, strict=True):
            texts += [answer, *sample.references]
            ends.append(len(texts))
        lines = tokenized(texts)
        captions = {i: [lines[start]] for i, start in enumerate(ends[:-1])}
        references = {i: lines[ends[i] + 1 : ends[i + 1]] for i in captions}
        _, scores = Scorer().compute_score(references, captions)
        return [float(score) for score in scores]


class CocoCaptions(Cider):
    """CIDEr, and CHAIR with the reference captions as ground truth."""

    def figures(self, samples: Sequence[TaskSample], answers: Sequence[str]) -> dict[str, float]:
        """Return CHAIRi and CHAIRs; see :func:`vlmflow.tasks.metrics.chair.chair`.

        The original adds the pictures' instance annotations, which caption data sets do not carry:
        an object in the picture that no annotator mentioned counts as hallucinated, so the values
        lie above the original's.
        """
        objects = [
            {category for caption in sample.references for category in coco_mentions(caption)}
            for sample in samples
        ]
        score = chair(answers, objects, coco_mentions)
        return {"CHAIRi (captions)": score.chair_i, "CHAIRs (captions)": score.chair_s}


@cache
def _try(java: str | None) -> None:
    """Tokenize once, before any work is done that needs it; ``java`` is what was tried."""
    del java
    tokenized(["a try"])


def tokenized(texts: Sequence[str]) -> list[str]:
    """Return texts as Stanford's PTB tokenizer splits them: lower case, without punctuation.

    The tokenizer and its list of punctuation are those in pycocoevalcap, whose own wrapper writes
    into the installed package and on the terminal.

    Raises
    ------
    InputError
        If the package or Java is missing, or Java fails.
    """
    try:
        from pycocoevalcap.tokenizer import ptbtokenizer
    except ImportError as error:
        raise InputError(_NO_EXTRA) from error
    java = which("java")
    if java is None:
        raise InputError(_NO_JAVA.format("there is no `java` on the PATH"))
    jar = Path(ptbtokenizer.__file__).with_name(ptbtokenizer.STANFORD_CORENLP_3_4_1_JAR)
    # One text per line: a line break within one would shift all that follow.
    lines = "".join(f"{' '.join(text.split())}\n" for text in texts)
    quick = ["-XX:TieredStopAtLevel=1", "-XX:+UseSerialGC"]  # most of a run is Java's start
    command = [java, *quick, "-Dfile.encoding=UTF-8", "-cp", str(jar)]
    command += ["edu.stanford.nlp.process.PTBTokenizer", "-preserveLines", "-lowerCase"]
    try:
        run = subprocess.run(command, input=lines.encode(), capture_output=True, check=True)
    except (OSError, subprocess.CalledProcessError) as error:
        output = getattr(error, "stderr", b"") or str(error).encode()
        reason = (output.decode("utf-8", "replace").strip().splitlines() or ["no reason given"])[0]
        raise InputError(_NO_JAVA.format(f"{java!r} failed ({reason})")) from error
    dropped = frozenset(ptbtokenizer.PUNCTUATIONS)
    split = run.stdout.decode("utf-8", "replace").split("\n")[: len(texts)]
    if len(split) != len(texts):
        raise InputError(f"CIDEr's tokenizer gave {len(split)} lines for {len(texts)} captions")
    return [" ".join(w for w in line.split() if w not in dropped) for line in split]
