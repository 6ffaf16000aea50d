"""Certifying from end to end on a small random model: measured, tested, run, written, refused."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

import vlmflow
from tests.support.number_format import quick_by_default
from tests.support.tiny import tiny_llava
from vlmflow import LVLM
from vlmflow.cli import app
from vlmflow.errors import InputError
from vlmflow.studies.certification.certificate import Certificate
from vlmflow.studies.certification.independent import independent_samples
from vlmflow.studies.certification.run import read_certificate
from vlmflow.studies.certification.settings import CertifySettings
from vlmflow.tasks.base import Task, TaskSample, check_split
from vlmflow.truncation.exit_policy import ExitPolicy
from vlmflow.truncation.exit_signals.signal import ExitSignal
from vlmflow.truncation.truncation import Truncation

HOSTILE = "<script>alert(1)</script>\u202e"
SETTINGS = CertifySettings(
    risk=0.4, calibration=30, samples=8, layers=(2, 3), keeps=(0.0, 0.25), timed=1
)


class Drawn(Task):
    """Two questions about each picture; the answer does not matter."""

    name, metric, max_new_tokens = f"drawn {HOSTILE}", "length", 3
    broken = 0  # How many pictures cannot be read

    def samples(self, split, count=None):
        check_split(split)
        for place in range(count):
            picture = place // 2
            pixels = np.random.default_rng([picture, len(split)]).integers(0, 256, (12, 12, 3))
            image = Image.fromarray(pixels.astype(np.uint8)).resize((40, 30))
            yield TaskSample(
                key=f"{split} {place}",
                pictures=(f"missing {picture}.png" if picture < self.broken else image,),
                question=f"What is {place % 2}? {HOSTILE}",
                references=("x",),
                group=HOSTILE if place % 2 else "even",
                cluster=f"picture {picture}",
            )

    def score(self, sample, answer):
        return min(1.0, len(answer) / 40)


@pytest.fixture(scope="module")
def vlm() -> LVLM:
    model = tiny_llava(5, layers=4, heads=4, kv_heads=2, attn_implementation="sdpa")
    return LVLM(*model, name=f"tiny {HOSTILE}")


@pytest.fixture(scope="module")
def found(vlm, tmp_path_factory) -> tuple[Certificate, object]:
    file = tmp_path_factory.mktemp("certified") / "policy.json"
    return vlmflow.certify(vlm, Drawn(), out=file, settings=SETTINGS), file


def test_samples_share_no_picture_and_come_in_the_seed_s_order():
    samples = independent_samples(Drawn(), "test", 20, 0)
    assert len({sample.cluster for sample in samples}) == len(samples) == 20
    assert {sample.group for sample in samples} == {HOSTILE, "even"}  # drawn, not always the first
    keys = [sample.key for sample in samples]
    assert keys == [sample.key for sample in independent_samples(Drawn(), "test", 20, 0)]
    assert keys != [sample.key for sample in independent_samples(Drawn(), "test", 20, 1)]
    assert keys != sorted(keys)


def test_the_policy_does_on_new_samples_what_was_replayed(vlm, found):
    certificate, _ = found
    assert (certificate.fitted, certificate.tested) == (12, 18)
    assert certificate.policy is not None
    assert len(certificate.runs) == 8
    ends = np.array([run.exit_layer for run in certificate.runs])
    kept = certificate.policy.stages[0].keep.of(16) / 16 if certificate.policy.ranks else 0
    rival = certificate.rival("policy")
    assert ((4 - ends) / 4 * (1 - kept)).mean() == pytest.approx(rival.saved)
    assert np.mean([run.changed for run in certificate.runs]) == rival.risk
    # And each of them by the slow way: the truncation of the layer at which it left.
    samples = {sample.key: sample for sample in independent_samples(Drawn(), "test", 8, 0)}
    for run in certificate.runs:
        sample = samples[run.key]
        prompt = vlm.prepare(sample.pictures, sample.question)
        own = vlm.generate_ids(prompt, max_new_tokens=3)
        applied = certificate.policy.applied(run.exit_layer)
        then = vlm.generate_ids(prompt, max_new_tokens=3, truncation=applied)
        assert (own != then) == run.changed
        assert vlm.generate_ids(prompt, max_new_tokens=3, truncation=certificate) == then


def test_nothing_is_measured_twice_and_all_can_be_read_again(vlm, found, monkeypatch):
    certificate, file = found
    assert (
        read_certificate(file.with_suffix("")).to_json()
        == replace(certificate, policy=replace(certificate.policy, certificate=None)).to_json()
    )
    monkeypatch.setattr(LVLM, "generate_with", lambda *_a, **_k: pytest.fail("answered again"))
    settings = replace(SETTINGS, timed=0)
    again = vlmflow.certify(vlm, Drawn(), out=file, settings=settings)
    assert again.runs == certificate.runs
    assert again.rivals == certificate.rivals
    assert again.skills == certificate.skills
    assert again.path == certificate.path


def test_the_file_names_its_promise_and_runs_on_its_model_alone(vlm, found):
    certificate, file = found
    plain = json.loads(file.read_text("utf-8"))["certificate"]
    expected = {"risk": 0.4, "confidence": 0.9, "fitted": 12, "tested": 18, "decoding": "greedy"}
    assert {name: plain[name] for name in expected} == expected
    assert plain["p_value"] == certificate.p_value <= 0.1
    policy = ExitPolicy.load(file)
    assert policy == certificate.policy
    (sample,) = Drawn().samples("test", 1)
    prompt = vlm.prepare(sample.pictures, sample.question)
    with policy(vlm.model) as run:
        vlm.model.generate(**prompt.inputs, max_new_tokens=1, do_sample=False)
    assert run.exit_layers.shape == (1,)
    assert isinstance(vlm.generate(sample.pictures, sample.question, policy=policy), str)
    with policy(vlm.model), pytest.raises(InputError, match="do_sample=True, but this policy"):
        vlm.model.generate(**prompt.inputs, max_new_tokens=1, do_sample=True)
    with policy(vlm.model), pytest.raises(InputError, match="num_beams=2, but this policy"):
        vlm.model.generate(**prompt.inputs, max_new_tokens=1, do_sample=False, num_beams=2)
    with pytest.raises(InputError, match="give one of them"):
        vlm.generate(sample.pictures, "What?", policy=policy, truncation=Truncation(2, 0))
    other, _ = tiny_llava(6, layers=4, heads=4, kv_heads=2, attn_implementation="sdpa")
    with pytest.raises(InputError, match="its weights are others; certify a policy"), policy(other):
        pass
    half, _ = tiny_llava(5, layers=4, heads=4, kv_heads=2, attn_implementation="sdpa")
    with pytest.raises(InputError, match="it runs in bfloat16"), policy(half.to(torch.bfloat16)):
        pass


def test_what_is_written_and_shown_is_escaped(found, tmp_path):
    certificate, file = found
    directory = file.with_suffix("")
    names = {path.name for path in directory.iterdir()}
    assert {"certificate.html", "certificate.json", "certificate.png", "signals.csv"} <= names
    for text in ((directory / "certificate.html").read_text("utf-8"), certificate._repr_html_()):
        assert "<script>" not in text
        assert "&lt;script&gt;" in text
        assert "\u202e" not in text
    assert "with 90 % confidence, at most 40 % of answers change" in repr(certificate)
    page = vlmflow.report(certificate, tmp_path / "page.html")
    assert "Median prefill of a few new samples" in page.read_text("utf-8")


def test_a_risk_that_no_exit_keeps_certifies_nothing_and_removes_an_old_file(vlm, tmp_path):
    """A signal that lets everybody leave at once: what is left is to say so."""

    @dataclass(frozen=True)
    class Blind(ExitSignal):
        version = "1"

        def value(self, seen):
            return seen.last.new_zeros(())

    file = tmp_path / "policy.json"
    file.write_text("an older promise")
    strict = CertifySettings(
        risk=0.1, calibration=45, samples=3, layers=(1,), keeps=(0.0,), timed=0
    )
    found = vlmflow.certify(vlm, Drawn(), out=file, settings=strict, signals=[Blind()])
    assert found.policy is None
    assert not file.exists()
    with pytest.raises(InputError, match="nothing was certified"), found(vlm.model):
        pass
    assert "no policy could be certified" in found._repr_html_()


def test_broken_samples_are_named_and_left_out(vlm, tmp_path):
    task = Drawn()
    task.broken = 2
    settings = replace(SETTINGS, timed=0)
    found = vlmflow.certify(vlm, task, out=tmp_path / "policy.json", settings=settings)
    assert found.fitted + found.tested == 28
    assert len(found.failures) == 4  # two pictures of either split
    assert "missing " in found.failures[0]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"risk": 0.01, "calibration": 300},
            "even without one changed answer it takes 230; give calibration=385",
        ),
        ({"risk": None}, "promise nothing"),
        ({"risk": 1.5}, "risk=1.5 is not a share"),
        ({"confidence": 1}, "confidence=1 is not a share"),
        ({"keeps": ()}, "tries nothing"),
        ({"keeps": (1.0,)}, "keep=1.0 is not a share"),
        ({"layers": (0,)}, "layer"),
        ({"rank_by": "best"}, "ranking 'best' is unknown"),
        ({"rank_by": "saliency"}, "looks at the answer"),
    ],
)
def test_impossible_promises_are_refused_before_anything_runs(settings, message):
    with pytest.raises(InputError) as caught:
        CertifySettings(**settings)
    assert message in str(caught.value)
    if "give calibration=" in message:  # and what it says is enough
        count = int(re.search(r"calibration=(\d+) or", str(caught.value))[1])
        CertifySettings(risk=0.01, calibration=count)


def test_files_that_are_no_policies(tmp_path):
    file = tmp_path / "policy.json"
    for text, message in (
        ("{", "it is not JSON"),
        ("[]", "is not an exit policy"),
        ('{"format": "other"}', "is not an exit policy"),
        ('{"format": "vlmflow exit policy 1", "policy": 3}', "is damaged"),
        ('{"format": "vlmflow exit policy 1", "policy": {"layer": 1}}', "an exit policy cannot"),
    ):
        file.write_text(text)
        with pytest.raises(InputError, match=message):
            ExitPolicy.load(file)
    with pytest.raises(InputError, match="cannot be read"):
        ExitPolicy.load(tmp_path / "none.json")


def test_the_command_line(tmp_path, monkeypatch):
    quick_by_default(monkeypatch)
    runner, out = CliRunner(), tmp_path / "policy.json"
    options = ["--risk", "0.3", "--calibration", "20", "--samples", "4", "--timed", "0"]
    exits = ["--layer", "6", "--keep", "0", "--signals", "image_attention"]
    ran = runner.invoke(app, ["certify", "scenes-existence", "--out", str(out), *options, *exits])
    assert ran.exit_code == 0, ran.output
    assert "at most 30 % of answers change" in ran.output
    policy = ExitPolicy.load(out)
    image, question = vlmflow.sample("scenes-existence")
    image.save(tmp_path / "picture.png")
    asked = ["generate", str(tmp_path / "picture.png"), question, "--policy", str(out), "--compare"]
    ran = runner.invoke(app, [*asked, "--json"])
    assert ran.exit_code == 0, ran.output
    facts = json.loads(ran.output)
    assert facts["policy"] == policy.to_json()
    assert facts["exit_layer"] in (6, 12)
    assert facts["tokens_per_layer"] == facts["cached_tokens"]
    assert "left at layer 6" in runner.invoke(app, asked).output
    for arguments, message in (
        ([*asked, "--preset", "fastv"], "all remove tokens"),
        (["certify", "scenes-existence", "--out", str(tmp_path / "x")], "end it in .json"),
        (["certify", "scenes-existence", "--out", str(out), "--risk", "much"], "neither a number"),
        (
            ["certify", "scenes-existence", "--out", str(out), "--calibration", "50"],
            "nothing can be",
        ),
    ):
        ran = runner.invoke(app, arguments)
        assert ran.exit_code == 2
        assert message in ran.output.replace("\n", " ")
