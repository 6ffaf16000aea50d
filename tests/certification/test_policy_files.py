"""Files of policies that somebody else wrote, and promises that they must not carry over."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, replace

import pytest

from vlmflow.errors import InputError
from vlmflow.truncation.exit_policy import FORMAT, ExitPolicy
from vlmflow.truncation.exit_signals.probe import Probe
from vlmflow.truncation.exit_signals.signal import ExitSignal

PLAIN = ExitPolicy((1,), (0,), signal="hidden_step", thresholds=(0.0,)).to_json()


def written(path, **changes):
    path.write_text(json.dumps({"format": FORMAT, "policy": PLAIN | changes}), "utf-8")
    return path


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"thresholds": [10**400]}, "too large for a float"),
        ({"thresholds": [math.nan]}, "threshold=nan"),
        ({"thresholds": {"a": 1}}, "is not a number"),
        ({"signal": None}, "None is not an exit signal"),
        ({"extra": 1}, "an exit policy cannot be made of"),
        *(
            ({"signal": {"name": "probe", "weights": weights}}, "the weights of a probe are")
            for weights in (
                *(5, "abc", None, [1, 2], [["x"]], [[1, 2]], [[1, 0.0, 3]], [[True, 0.0, []]]),
                *([[1, "x", [1.0]]], [[1, 0.0, ["a"]]], [[1, 0.0, [math.nan]]]),
                *([[1, math.inf, [1.0]]], [[1, 0.0, [10**400]]]),
            )
        ),
    ],
)
def test_hostile_values_are_refused_in_one_sentence(tmp_path, changes, message):
    with pytest.raises(InputError, match=message):
        ExitPolicy.load(written(tmp_path / "policy.json", **changes))


def test_lists_within_lists_are_refused(tmp_path):
    file = written(tmp_path / "policy.json", signal={"name": "probe", "weights": 7})
    for depth in (900, 20_000):
        text = file.read_text("utf-8").replace("7", "[" * depth + "]" * depth)
        (tmp_path / "deep.json").write_text(text, "utf-8")
        with pytest.raises(InputError):
            ExitPolicy.load(tmp_path / "deep.json")


def test_what_json_cannot_hold_is_named_before_a_file_is_written(tmp_path):
    policy = ExitPolicy((1, 2), (0, 0), signal="hidden_step", thresholds=(0.0, math.inf))
    with pytest.raises(InputError, match="threshold=inf of layer 2 cannot be saved"):
        policy.save(tmp_path / "policy.json")
    assert not list(tmp_path.iterdir())


def test_a_fitted_probe_comes_back_as_it_was(tmp_path):
    probe = Probe(((1, 0.5, (1.0, 2.0)), (3, -1, (0.25, 1e-9))))
    policy = ExitPolicy((1, 3), (0, 0), signal=probe, thresholds=(0.0, 1.0))
    policy.save(tmp_path / "policy.json")
    assert ExitPolicy.load(tmp_path / "policy.json").exit_signal == probe


def signal_of_version(number: str) -> ExitSignal:
    @dataclass(frozen=True)
    class Edited(ExitSignal):
        """As a notebook's cell that is edited and run again."""

        version = number

        def value(self, seen):
            return seen.last.sum()

    return Edited()


def test_an_edited_signal_does_not_get_the_promise_of_the_one_that_was_certified(tmp_path):
    policy = ExitPolicy((1,), (0,), signal=signal_of_version("1"), thresholds=(0.0,))
    promise = {
        "model": {"name": "tiny", "dtype": "float32"}, "weights": "ab", "code": policy.code(),
    }  # fmt: skip
    file = tmp_path / "policy.json"
    replace(policy, certificate=promise).save(file)
    signal_of_version("1")
    assert ExitPolicy.load(file).certificate == promise
    signal_of_version("2")
    with pytest.raises(InputError, match="certified with other code of 'edited'"):
        ExitPolicy.load(file)
