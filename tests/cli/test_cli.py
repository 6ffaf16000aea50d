"""The command line: the main job, one clear line for bad input, nothing half-written."""

from __future__ import annotations

import json
import os
import pty
import re
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

import vlmflow
from tests.support.tiny import tiny_llava
from vlmflow import cli
from vlmflow.cli import terminal
from vlmflow.errors import InputError, ModelError
from vlmflow.flow.signals.registry import SIGNALS
from vlmflow.result.information_flow import InformationFlow

FILES = ["flow.json", "flow.safetensors", "report.html"]
SHORT = ("--max-new-tokens", "2")
QUESTION = "Which number is printed on the green triangle?"


@pytest.fixture(scope="session")
def model(tmp_path_factory):
    """Directory of a tiny model with random weights."""
    directory = tmp_path_factory.mktemp("model")
    for part in tiny_llava():
        part.save_pretrained(directory)
    return str(directory)


@pytest.fixture
def picture(tmp_path):
    path = tmp_path / "picture.png"
    Image.effect_noise((90, 60), 80).convert("RGB").save(path)
    return str(path)


@pytest.fixture
def out(tmp_path):
    return tmp_path / "out"


def run(*arguments):
    return CliRunner().invoke(cli.app, [str(argument) for argument in arguments])


def refused(result, *phrases):
    """Exit code 2 and one line on stderr that holds the phrases; nothing else."""
    assert result.exit_code == 2, result.output
    assert result.stdout == ""
    (line,) = result.stderr.splitlines()
    assert line.startswith("vlmflow: ")
    for phrase in phrases:
        assert phrase in line
    return True


def whole_command(picture, model):
    start = [sys.executable, "-m", "vlmflow", "explain"]
    return [*start, picture, QUESTION, "--model", model, *SHORT]


@pytest.fixture
def no_model(monkeypatch):
    """Any attempt to load a model fails the test."""

    def load(*_, **__):
        pytest.fail("a model was loaded before the input was checked")

    monkeypatch.setattr(vlmflow, "load", load, raising=False)


def test_explain_writes_the_report_and_the_numbers(model, picture, out):
    result = run(
        "explain", picture, QUESTION, "--model", model, "--out", out, "--max-new-tokens", 3
    )
    assert result.exit_code == 0, result.output
    assert sorted(path.name for path in out.iterdir()) == FILES
    (line,) = result.stdout.splitlines()
    assert line.endswith(f"-> {out / 'report.html'}")
    assert result.stderr == ""
    flow = InformationFlow.load(out)
    assert flow.question == QUESTION
    assert flow.signals == ("attention", "saliency", "sensitivity", "flow_map", "llava_cam")
    assert len(flow.targets) == 1 + len(flow.answer_tokens)


def test_json_is_one_object(model, picture, out):
    result = run("explain", picture, QUESTION, "--model", model, "--out", out, "--json", *SHORT)
    assert result.exit_code == 0, result.output
    facts = json.loads(result.stdout)
    assert facts["question"] == QUESTION
    assert facts["layers"] == 4
    assert facts["image_tokens"] == 16
    assert facts["answer"] == InformationFlow.load(out).answer
    for kind in ("report", "numbers", "arrays"):
        assert Path(facts[kind]).is_file()
    assert facts["figures"] is None


def test_attention_alone(model, picture, out):
    line = ("explain", picture, QUESTION, "--model", model, "--out", out, *SHORT)
    result = run(*line, "--no-gradients", "--figures")
    assert result.exit_code == 0, result.output
    assert InformationFlow.load(out).signals == ("attention",)
    refused = run(*line, "--no-gradients", "--signals", "saliency")
    assert refused.exit_code == 2
    assert "saliency are made of gradients" in refused.stderr


def test_every_signal_can_be_asked_for_by_name(model, picture, out):
    """Each with its source, its kind of map and its cost; beside them the listed names."""
    fewer = {
        "attention": "attention",
        "text_attention": "text_attention",
        "gradient_input": "gradient_input",
        "rollout": "rollout",
        "relevancy": "relevancy",
        "integrated_gradients": "integrated_gradients(steps=2,baseline=zero)",
        "tam": "tam(window=5)",
        "region_removal": "region_removal(regions=3,forwards=9,width=1)",
    }
    names, asked = tuple(fewer), tuple(fewer.values())
    line = ("explain", picture, QUESTION, "--model", model, "--out", out, "--answer", "red")
    result = run(*line, "--signals", ",".join(asked), "--whole", *SHORT)
    assert result.exit_code == 0, result.output
    flow = InformationFlow.load(out)
    assert flow.signals == names
    whole = {"gradient_input", "integrated_gradients", "tam", "region_removal"}
    for name, text in zip(names, asked, strict=True):
        about, signal = flow.map_info(name), SIGNALS.read(text)
        assert about.source == signal.source != ""
        assert about.whole == (name in whole)
        assert flow.maps[name].shape[0] == (4 if about.summed is None else 1)
        assert signal.passes().forward >= 1
    assert {name for name in names if flow.map_info(name).searched_with} == {"region_removal"}
    stated = {signal["name"]: signal for signal in flow.settings["signals"]}
    assert stated["tam"] == {"name": "tam", "window": 5}
    assert stated["region_removal"]["forwards"] == 9
    listed = run("signals").stdout
    assert all(f"{name} " in listed for name in names)
    assert all(line in listed for line in SIGNALS.bundled().values())


def test_every_option_reaches_the_measurement(model, picture, out):
    options = {
        "--answer": "red",
        "--signals": "flow_map(layers=3), saliency,llava_cam_smooth(copies=2,deviation=0.5,seed=7)",
        "--scalar": "margin",
        "--dtype": "bfloat16",
        "--device": "cpu",
        "--image": picture,
    }
    flags = ["--whole", "--low-memory", "--figures"]
    pairs = [text for pair in options.items() for text in pair]
    result = run("explain", picture, QUESTION, "--model", model, "--out", out, *pairs, *flags)
    assert result.exit_code == 0, result.output
    flow = InformationFlow.load(out)
    assert flow.answer == "red"
    assert flow.targets == ("answer",)
    assert set(flow.signals) == {"flow_map", "saliency", "llava_cam_smooth"}
    assert len(flow.layout.image_sizes) == 2
    stated = json.dumps({**flow.settings, **flow.versions})
    for value in ("margin", "bfloat16", "0.5", "7"):
        assert value in stated
    assert {path.suffix for path in (out / "figures").iterdir()} == {".png", ".pdf"}


def test_words_are_explained_and_named(model, picture, out):
    line = ("explain", picture, QUESTION, "--model", model, "--out", out, "--whole")
    result = run(*line, "--target", "green", "--of", "question")
    assert result.exit_code == 0, result.output
    assert result.stdout.startswith("Explained: the word “green” of the question -> ")
    flow = InformationFlow.load(out)
    assert flow.targets == ("green",)
    numbers = range(flow.words.first, flow.words.first + len(flow.answer_tokens))
    first = flow.words.first - flow.layout.image_positions[-1]
    result = run(
        *line, "--of", "prompt", "--json", "--target-tokens", f"{first}-{first + len(numbers) - 1}"
    )
    assert json.loads(result.stdout)["explained"] == "the word “green” of the prompt"
    np.testing.assert_array_equal(InformationFlow.load(out).maps["flow_map"], flow.maps["flow_map"])
    line = ("trust", picture, QUESTION, "--model", model, "--steps", 2, "--target", "green")
    result = run(*line, "--of", "question")
    assert "for the word “green” of the question: insertion" in result.stdout
    for flags, message in (
        (("--target-tokens", "3-2"), "neither a token's number nor a run"),
        (("--target", "a", "--target-tokens", "3"), "give one"),
        (("--target", "which is not there"), "is not in the answer"),
    ):
        result = run("explain", picture, QUESTION, "--model", model, "--answer", "red", *flags)
        assert result.exit_code == 2
        assert message in result.stderr
    result = run("explain", "scenes-reading", "--model", model, "--of", "question", "--out", out)
    assert result.exit_code == 2
    assert "explain its whole answers" in result.stderr


def test_scalar_names_are_those_that_can_be_measured():
    from vlmflow.flow.targets import SCALARS

    assert [scalar.value for scalar in cli.explain.Scalar] == list(SCALARS)


def test_a_second_run_replaces_the_first(model, picture, out):
    for answer in ("red", "blue"):
        result = run(
            "explain", picture, QUESTION, "--model", model, "--out", out, "--answer", answer
        )
        assert result.exit_code == 0, result.output
    assert InformationFlow.load(out).answer == "blue"
    assert sorted(path.name for path in out.iterdir()) == FILES


def test_demo(out):
    result = run("demo", "--out", out)
    assert result.exit_code == 0, result.output
    assert sorted(path.name for path in out.iterdir()) == FILES
    assert result.stdout.strip().endswith(str(out / "report.html"))


@pytest.mark.parametrize(
    ("arguments", "phrases"),
    [
        (["missing.png", QUESTION], ["missing.png", "does not exist"]),
        ([".", QUESTION], ["is a directory"]),
        (["PICTURE", " \n"], ["question is empty"]),
        (["PICTURE", "<image>\nWhat?"], ["question", "'<image>'"]),
        (["PICTURE", "half \udcff"], ["the question holds '\\udcff'"]),
        (["PICTURE", QUESTION, "--answer", ""], ["--answer is empty"]),
        (["PICTURE", QUESTION, "--answer", "\ud800"], ["--answer holds '\\ud800'"]),
        (["PICTURE", QUESTION, "--image", "missing.png"], ["missing.png"]),
        (["PICTURE", QUESTION, "--signals", "atention"], ["atention", "attention"]),
        (["PICTURE", QUESTION, "--signals", " ,"], ["no signal"]),
        (["PICTURE", QUESTION, "--signals", "llava_cam_smooth(copies=0)"], ["copies=0"]),
        (["PICTURE", QUESTION, "--signals", "flow_map(3)"], ["'3' in 'flow_map(3)'"]),
        (["PICTURE", QUESTION, "--max-new-tokens", "0"], ["--max-new-tokens 0"]),
        (["PICTURE", QUESTION, "--out", "PICTURE"], ["not a directory"]),
        (["PICTURE", QUESTION, "--out", "PICTURE/out"], ["cannot be written"]),
    ],
)
def test_bad_input_is_refused_before_the_model_is_loaded(
    arguments, phrases, picture, out, no_model, tmp_path
):
    arguments = [argument.replace("PICTURE", picture) for argument in arguments]
    if "--out" not in arguments:
        arguments += ["--out", str(out)]
    assert refused(run("explain", *arguments), *phrases)
    assert [path.name for path in tmp_path.iterdir()] == ["picture.png"]


@pytest.mark.parametrize(
    ("option", "value", "phrases"),
    [
        ("--model", "no-such-model", ["no-such-model"]),
        ("--model", "DIRECTORY", ["not a model"]),
        ("--device", "warp", ["warp"]),
        ("--signals", "flow_map(layers=99)", ["99", "4"]),
        ("--answer", "</s>", ["</s>"]),
        ("--revision", "main", ["revision"]),
    ],
)
def test_what_only_the_model_can_tell_is_refused_too(
    option, value, phrases, model, picture, out, tmp_path
):
    value = value.replace("DIRECTORY", str(tmp_path))
    assert refused(
        run("explain", picture, QUESTION, "--model", model, "--out", out, option, value), *phrases
    )
    assert not out.exists()


@pytest.mark.parametrize(
    "arguments", [["explain"], ["explain", "a.png"], ["--nonsense"], ["explian", "a.png", "b"]]
)
def test_usage_errors_exit_with_2(arguments):
    result = run(*arguments)
    assert result.exit_code == 2
    assert "Traceback" not in result.output


def test_version():
    assert run("--version").stdout == f"vlmflow {vlmflow.__version__}\n"


@pytest.mark.parametrize(
    ("error", "code", "word"),
    [
        (KeyboardInterrupt, 130, "interrupted"),
        (MemoryError, 1, "--low-memory"),
        (RuntimeError("CUDA out of memory. Tried to allocate 7 GiB"), 1, "--low-memory"),
        (ModelError("two\nlines \x1b[31m"), 2, "two lines \\x1b[31m"),
    ],
)
def test_whatever_stops_the_model_leaves_nothing(
    monkeypatch, picture, out, tmp_path, error, code, word
):
    def load(*_, **__):
        raise error

    monkeypatch.setattr(vlmflow, "load", load, raising=False)
    result = run("explain", picture, QUESTION, "--out", out / "deep")
    assert result.exit_code == code
    (line,) = result.stderr.splitlines()
    assert word in line
    assert [path.name for path in tmp_path.iterdir()] == ["picture.png"]


def test_a_failed_report_leaves_the_earlier_one(monkeypatch, model, picture, out):
    arguments = ["explain", picture, QUESTION, "--model", model, "--out", out]
    assert run(*arguments, "--answer", "red").exit_code == 0
    before = {path.name: path.read_bytes() for path in out.iterdir()}

    def write_report(flow, path, regions, other):
        path.write_text("half")
        raise InputError("the disk is full; make room")

    monkeypatch.setattr("vlmflow.reports.explain.page.write_report", write_report)
    assert refused(run(*arguments, "--answer", "blue"), "disk is full")
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before


def test_names_and_answers_cannot_steer_the_terminal(model, picture, tmp_path):
    out = tmp_path / "a\x1b]0;title\x07[bold]b"
    answer = "red\x1b[2J\u202e[link=x]"
    result = run("explain", picture, QUESTION, "--model", model, "--out", out, "--answer", answer)
    assert result.exit_code == 0, result.output
    assert result.stdout.rstrip("\n").isprintable()
    assert "[bold]b" in result.stdout
    assert "[link=x]" in result.stdout
    assert refused(run("explain", "x\x1b[2Jy.png", QUESTION, "--out", out), "x\\x1b[2Jy.png")


SLOW = textwrap.dedent(
    """
    import signal, sys, time
    import vlmflow
    from vlmflow import cli

    def load(*_, **__):
        print("loading", flush=True)
        time.sleep(60)

    vlmflow.load = load
    # A job in the background of a script starts with this signal ignored.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    cli.main()
    """
)


@pytest.mark.skipif(os.name == "nt", reason="signals are sent the POSIX way")
@pytest.mark.parametrize(("sent", "code"), [("SIGINT", 130), ("SIGTERM", 143), ("SIGHUP", 129)])
def test_stopping_a_run_leaves_nothing(picture, out, tmp_path, sent, code):
    command = [sys.executable, "-c", SLOW, "explain", picture, QUESTION, "--out", str(out / "a")]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout.readline() == "loading\n"
        time.sleep(0.1)
        process.send_signal(getattr(signal, sent))
        _, errors = process.communicate(timeout=30)
    assert process.returncode == code
    assert "Traceback" not in errors
    assert [path.name for path in tmp_path.iterdir()] == ["picture.png"]


def test_a_whole_run_prints_one_line_and_nothing_of_other_libraries(model, picture, tmp_path):
    command = whole_command(picture, model)
    done = subprocess.run(
        command, cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    (line,) = done.stdout.splitlines()
    assert line.endswith(str(Path("vlmflow-report", "report.html")))


@pytest.mark.skipif(os.name == "nt", reason="needs a pseudo-terminal")
def test_progress_is_shown_on_a_terminal(model, picture, out):
    ours, theirs = pty.openpty()
    command = whole_command(picture, model)
    with subprocess.Popen(
        [*command, "--out", str(out)],
        stdout=subprocess.PIPE,
        stderr=theirs,
        env={**os.environ, "TERM": "xterm"},
    ) as process:
        os.close(theirs)
        shown = b""
        try:
            while part := os.read(ours, 4096):
                shown += part
        except OSError:  # the other end is closed
            pass
        stdout, _ = process.communicate(timeout=120)
    os.close(ours)
    assert process.returncode == 0
    assert b"Loading" in shown
    assert b"Measuring" in shown
    assert stdout.count(b"\n") == 1


def test_a_log_gets_a_line_of_progress_now_and_then(monkeypatch, capsys):
    clock = [100.0]
    monkeypatch.setattr(terminal.time, "monotonic", lambda: clock[0])
    with terminal.progress() as show:
        show("Loading")
        for second in range(200):
            clock[0] = 105 + second
            show(f"{second} of 200\x1b", second, 200)
    lines = capsys.readouterr().err.splitlines()
    assert lines == [f"{second} of 200\\x1b" for second in range(10, 200, 30)]
    with terminal.progress() as show:  # what takes long is told though nothing is counted
        clock[0] += 31
        show("Writing")
    assert capsys.readouterr().err == "Writing\n"


def test_a_terminal_that_cannot_show_a_letter_gets_its_escape(model, picture, out):
    command = whole_command(picture, model)
    done = subprocess.run(
        [*command, "--out", str(out), "--answer", "caf\u00e9 \u8d64"],
        capture_output=True,
        timeout=120,
        check=False,
        env={**os.environ, "PYTHONIOENCODING": "latin-1"},
    )
    assert done.returncode == 0, done.stderr
    assert b"caf\xe9 \\u8d64" in done.stdout


def test_generate_answers_and_tells_the_cost(model, picture):
    result = run("generate", picture, QUESTION, "--model", model, "--max-new-tokens", "4")
    assert result.exit_code == 0, result.output
    assert [line.split()[0] for line in result.stdout.splitlines()] == [
        "answer", "tokens", "time", "cache",
    ]  # fmt: skip


def test_generate_compares_with_the_untouched_model(model, picture):
    arguments = ("generate", picture, QUESTION, "--model", model, "--max-new-tokens", "4")
    settings = ("--truncate", "layer=2,keep=4,rank_by=diversity", "--compare")
    result = run(*arguments, *settings)
    assert result.exit_code == 0, result.output
    assert " in layers 0-1, " in result.stdout
    assert "FastV's formula" in result.stdout
    compared = result.stdout.splitlines()[-1]
    assert re.search(r"prefill \d+\.\d\d times as (slow|fast), per token", compared)
    assert re.search(r"cache \d+% of the size", compared)
    facts = json.loads(run(*arguments, *settings, "--json").stdout)
    assert facts["truncation"]["keep"] == 4
    assert facts["cached_tokens"] == facts["tokens_per_layer"]
    assert facts["tokens_per_layer"][1] - facts["tokens_per_layer"][2] == facts["image_tokens"] - 4
    assert facts["untouched"]["truncation"] is None
    assert 0 < facts["flops"]["measured_share"] < 1
    assert facts["flops"]["measured_share"] == pytest.approx(facts["flops"]["prefill_share"])
    ratios = facts["compared"]["ratios"]
    assert ratios["cache_bytes"] == facts["cache_bytes"] / facts["untouched"]["cache_bytes"] < 1


def test_generate_keeping_all_gives_the_same_answer(model, picture):
    facts = json.loads(
        run(
            "generate", picture, QUESTION, "--model", model, "--truncate", "layer=1,keep=1.0",
            "--compare", "--json", "--max-new-tokens", "5",
        ).stdout
    )  # fmt: skip
    assert facts["compared"]["same_answer"]
    assert facts["answer"] == facts["untouched"]["answer"]


def test_generate_takes_a_preset(model, picture):
    facts = json.loads(
        run(
            "generate", picture, QUESTION, "--model", model, "--preset", "no-image", "--json",
            "--max-new-tokens", "2",
        ).stdout
    )  # fmt: skip
    assert facts["truncation"]["layer"] == 0
    assert facts["truncation"]["keep"] == 0


@pytest.mark.parametrize(
    ("arguments", "phrases"),
    [
        (("--truncate", "layer=2"), ("needs keep",)),
        (("--truncate", "layer=2,keep=0,rank_by=best"), ("ranking 'best'", "last_attention")),
        (("--truncate", "layer=2,keep=0", "--preset", "vtw"), ("give one",)),
        (("--compare",), ("nothing to compare",)),
        (("--preset", "vtv"), ("unknown preset 'vtv'", "vtw")),
        (("--max-new-tokens", "0", "--preset", "vtw"), ("--max-new-tokens 0",)),
    ],
)
def test_generate_refuses_bad_settings_before_loading(no_model, picture, arguments, phrases):
    refused(run("generate", picture, QUESTION, *arguments), *phrases)


@pytest.mark.parametrize(
    ("settings", "phrases"),
    [
        ("layer=9,keep=0", ("layer=9", "4 decoder layers (0..3)")),
        ("layer=2,keep=999", ("keep=999", "image tokens")),
    ],
)
def test_generate_refuses_what_the_model_does_not_have(model, picture, settings, phrases):
    refused(run("generate", picture, QUESTION, "--model", model, "--truncate", settings), *phrases)


@pytest.mark.parametrize(
    ("count", "seconds", "words"),
    [(32, 10.0, "3.2/s"), (5, 105.0, "21 s each"), (1, 1.0, "1.0/s"), (0, 3.0, "0.0/s")],
)
def test_how_fast_samples_go(count, seconds, words):
    assert terminal.pace_words(count, seconds) == words
