"""What a promise needs, and what is said where it cannot be had."""

from __future__ import annotations

import gc
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

import vlmflow
from tests.support.families import FAMILIES, SIZES, picture
from vlmflow import LVLM
from vlmflow.certification import exit_signals
from vlmflow.errors import InputError
from vlmflow.studies.certification.findings import Tried
from vlmflow.studies.certification.fitting import thresholds_at
from vlmflow.studies.certification.independent import independent_samples
from vlmflow.studies.certification.measurements import Measured, outcomes_of
from vlmflow.studies.certification.outcomes import first_reached
from vlmflow.studies.certification.paths import CHANCES
from vlmflow.studies.certification.sentences import why_nothing
from vlmflow.studies.certification.settings import CertifySettings
from vlmflow.tasks.base import Task, TaskSample
from vlmflow.tasks.mixture import Mixture
from vlmflow.truncation.exit_readings import read_exits
from vlmflow.truncation.exit_signals.probe import Probe
from vlmflow.truncation.exit_signals.registry import EXIT_SIGNALS
from vlmflow.truncation.exit_signals.signal import ExitSignal


class Listed(Task):
    """Samples as they are given."""

    metric = "share"

    def __init__(self, name: str, samples: list[TaskSample]) -> None:
        self.name, self.listed = name, samples

    def samples(self, split, count=None):
        yield from self.listed[:count]

    def score(self, sample, answer):
        assert sample in self.listed or not self.listed  # as it was given, not as a mixture's
        return float(answer)


def about(key: str, *pictures: str, cluster: str = "") -> TaskSample:
    return TaskSample(key, tuple(map(Path, pictures)), "?", ("x",), cluster=cluster)


def grouped(key: str) -> TaskSample:
    """In a group called as its task: that is all a mixture tells of it."""
    return replace(about(key, cluster="p"), group="a/b" if key == "k/1" else "a")


def test_questions_about_several_pictures_share_each_of_them():
    samples = [
        about("k1", "a.png", cluster="a"),
        about("k2", "b.png", cluster="b"),
        about("k3", "a.png", "b.png", cluster="a|b"),  # joins the two before
        about("k4", "c.png", "d.png", cluster="c|d"),
        about("k5", "d.png", cluster="d"),
        about("k6", "e.png", cluster="e"),
    ]
    drawn_keys = {
        frozenset(sample.key for sample in independent_samples(Listed("t", samples), "test", 9, s))
        for s in range(20)
    }
    for keys in drawn_keys:
        groups = ({"k1", "k2", "k3"}, {"k4", "k5"}, {"k6"})
        assert len(keys) == 3
        assert all(len(keys & group) == 1 for group in groups)
    # Two tasks of a mixture that ask about one file share it, too.
    mixed = Mixture([Listed("a/b", samples[:2]), Listed("other", samples[:2])])
    assert len(independent_samples(mixed, "test", 9, 0)) == 2


def test_a_mixture_scores_by_tasks_whose_names_have_slashes():
    tasks = [Listed("a/b", [grouped("k/1")]), Listed("a", [grouped("b/k2")])]
    mixed = Mixture(tasks)
    assert [mixed.score(sample, "0.5") for sample in mixed.samples("test")] == [0.5, 0.5]


def test_a_file_with_too_few_samples_is_refused_before_anything_runs(tmp_path):
    task = Listed("short", [about(f"k{number}", cluster=f"p{number}") for number in range(50)])
    vlm = LVLM(*FAMILIES[0].build("sdpa"))
    with pytest.raises(InputError, match="the 50 calibration samples that short has: 30 of them"):
        vlmflow.certify(vlm, task, out=tmp_path / "policy.json")


def test_the_first_reason_is_given_where_no_sample_can_be_measured(tmp_path):
    task = Listed("broken", [about(f"k{n}", f"gone {n}.png", cluster=f"p{n}") for n in range(20)])
    vlm = LVLM(*FAMILIES[0].build("sdpa"))
    settings = CertifySettings(risk=0.4, calibration=12, samples=2, layers=(2,), timed=0)
    with pytest.raises(InputError, match=r"could be measured; the first: k\d+: .*gone"):
        vlmflow.certify(vlm, task, out=tmp_path / "policy.json", settings=settings)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"layers": ()}, "are no exits"),
        ({"layers": 3}, r"layers=3 is not a tuple; write layers=\(3,\)"),
        ({"keeps": 0.1}, "keeps=0.1 is not a tuple"),
    ],
)
def test_settings_that_are_no_lists(settings, message):
    with pytest.raises(InputError, match=message):
        CertifySettings(**settings)


def test_a_score_beyond_0_to_1_bears_no_promise_about_it():
    answers = [{"text": text, "ids": [place]} for place, text in enumerate(("1", "5"))]
    zeros = np.zeros((1, 4), np.float32)
    measured = Measured(answers, {"s": np.zeros(1)}, zeros, zeros[0])
    with pytest.raises(InputError, match="scores an answer to k1 with 5"):
        outcomes_of(Listed("t", []), [(about("k1"), measured)], (2,), 4, (0.0,), bounded=True)
    # A promise about changed answers alone does not mind.
    loose = outcomes_of(Listed("t", []), [(about("k1"), measured)], (2,), 4, (0.0,))
    assert loose.losses.tolist() == [[[-4.0]]]


def test_a_probe_by_name_is_the_one_that_is_fitted_anyway():
    assert exit_signals("probe") == {}
    assert list(exit_signals(["probe", "hidden_step"])) == ["hidden_step"]
    with pytest.raises(InputError, match="fitted anew"):
        exit_signals([Probe(((1, 0.0, (1.0,)),))])

    class Other(ExitSignal):
        name = "probe"

        def value(self, seen):
            return seen.last.sum()

    with pytest.raises(InputError, match="give yours another name"):
        exit_signals([Other()])
    del Other
    gc.collect()  # a class that is left would be found by this name


def test_where_no_answer_changes_everybody_may_leave_whatever_a_signal_says():
    """And not by the sign of a slope that is rounding noise."""
    generator = np.random.default_rng(0)
    never = np.zeros(98, dtype=bool)
    for values in (*(generator.normal(size=98) for _ in range(20)), np.ones(98)):
        thresholds = thresholds_at(values, never, CHANCES)
        tolerated = CHANCES >= 0.01  # the rule of succession: 1 / (98 + 2)
        assert (thresholds[tolerated] <= values.min()).all()
        assert np.isfinite(thresholds[tolerated]).all()  # a file can hold it
        assert np.isinf(thresholds[~tolerated]).all()
    # A signal that cannot be read at a layer cannot be an exit there at run time.
    assert np.isinf(thresholds_at(np.full(98, np.nan), never, CHANCES)).all()


def test_an_exit_that_a_policy_leaves_out_is_never_reached():
    values = np.array([[np.inf, 1.0], [np.nan, -1.0], [0.0, 5.0]])
    assert first_reached(values, [np.inf, 1.0]).tolist() == [1, 2, 1]


def why(tested: int, risk: float, *, accepted: bool = False) -> str:
    settings = SimpleNamespace(risk=0.05, promise=SimpleNamespace(level=0.1))
    path = (Tried(0.002, 0.5, risk, 0.0, accepted),)
    return why_nothing(SimpleNamespace(path=path, settings=settings, tested=tested))


def test_why_nothing_was_certified_is_said_as_it_was():
    assert why(300, 0.2) == (
        "Even the safest policy changed 60 answers of those 300, where 9 are allowed."
    )
    assert "let no sample leave" in why(300, 0.0, accepted=True)
    assert "30 tested samples are too few" in why(30, 0.0)
    assert "its mean loss did not pass" in why(300, 0.0)


@dataclass(frozen=True)
class Undeclared(ExitSignal):
    """Looks at more than it says."""

    def value(self, seen):
        return seen.logits.max()


@dataclass(frozen=True)
class GivesNoNumber(ExitSignal):
    """Gives no number."""

    def value(self, seen):
        return seen.last.sum() * float("nan")


def test_layers_without_attention_are_no_exits_of_signals_that_read_it():
    family = next(own for own in FAMILIES if own.model_type == "lfm2_vl")  # its final norm, too
    vlm = LVLM(*family.build("sdpa"))
    signals = {name: EXIT_SIGNALS.read(name) for name in EXIT_SIGNALS.bundled() if name != "probe"}
    prompt = vlm.prepare([picture(1, SIZES[0])], "Why?")
    values = read_exits(vlm, prompt, signals, (1, 2, 3)).values
    reads = {name for name, signal in signals.items() if "attention" in signal.all_reads}
    for name, own in values.items():
        silent = [name in reads and layer - 1 < family.first_attention for layer in (1, 2, 3)]
        assert np.isnan(own).tolist()[: family.first_attention] == silent[: family.first_attention]
        assert np.isfinite(own[family.first_attention :]).any()


def test_signals_are_read_as_a_policy_reads_them():
    vlm = LVLM(*FAMILIES[0].build("sdpa"))
    prompt = vlm.prepare([picture(1, SIZES[0])], "Why?")
    for signal, message in ((Undeclared(), "declares reads="), (GivesNoNumber(), "not a number")):
        with pytest.raises(InputError, match=message):
            read_exits(vlm, prompt, {"own": signal}, (1,))
    # An adapter may want gradients of the embeddings; reading needs none.
    vlm.model.enable_input_require_grads()
    read = read_exits(vlm, prompt, {"step": EXIT_SIGNALS.read("hidden_step")}, (1, 2))
    assert read.text.shape == (vlm.model.config.text_config.hidden_size,)
