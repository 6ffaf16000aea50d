"""The result object: what it refuses, what it gives, and that a file gives the same back."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.support.synthetic import object_box, synthetic_flow
from vlmflow.errors import InputError
from vlmflow.lvlm.grids import ImageGrid
from vlmflow.lvlm.layout import TokenLayout
from vlmflow.result import storage
from vlmflow.result.information_flow import InformationFlow

TINY = {"layers": 3, "grid": (2, 3), "answer_tokens": ("red", "!")}


def assert_same(first: InformationFlow, other: InformationFlow) -> None:
    for field in dataclasses.fields(InformationFlow):
        left, right = getattr(first, field.name), getattr(other, field.name)
        if field.name == "layout":
            (left, left_arrays), (right, right_arrays) = left.to_dict(), right.to_dict()
            assert_arrays(left_arrays, right_arrays)
            assert left == right
        elif isinstance(left, np.ndarray):
            assert_arrays({"": left}, {"": right})
        elif field.name == "text_attention":
            assert_arrays(vars(left), vars(right))
        elif field.name == "pictures":
            assert_arrays(dict(enumerate(left)), dict(enumerate(right)))
        elif field.name in ("maps", "flags"):
            assert list(left) == list(right)
            assert_arrays(left, right)
        else:
            assert left == right


def assert_arrays(left, right) -> None:
    assert set(left) == set(right)
    for name, array in left.items():
        assert array.dtype == right[name].dtype
        assert array.shape == right[name].shape
        assert array.tobytes() == right[name].tobytes()


# ------------------------------------------------------------------ construction


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"attention_share": np.zeros((3, 3, 3))}, r"attention_share must have shape \(3, 3, 4\)"),
        ({"saliency_sum": np.zeros((3, 3, 4))}, "saliency_sum must have shape"),
        ({"saliency_mean": np.full((3, 3, 2, 4), np.nan)}, "saliency_mean holds values"),
        ({"attention_share": np.full((3, 3, 4), 1e300)}, "not finite"),
        ({"maps": {"attention": np.zeros((3, 3, 5))}}, "every map needs flags"),
        ({"targets": ("answer", "red")}, "targets must be"),
        ({"targets": ()}, "targets must be"),
        ({"answer_tokens": ("red",)}, "answer_tokens must name each answer token"),
        ({"pictures": ()}, "pictures must hold one copy per picture"),
        ({"pictures": (np.zeros((4, 4, 3)),)}, r"pictures\[0\] must be .* uint8"),
        ({"model": None}, "model must be a text"),
        ({"settings": {"a": [object()]}}, r"settings\['a'\]\[0\] is a object"),
    ],
)
def test_parts_that_do_not_fit_are_refused(change, message):
    with pytest.raises(InputError, match=message):
        dataclasses.replace(synthetic_flow(**TINY), **change)


def test_maps_are_checked_against_the_layout():
    flow = synthetic_flow(**TINY)
    for signal, shape in (
        ("flow_map", (3, 3, 6)),
        ("saliency", (1, 3, 6)),
        ("saliency", (3, 3, 5)),
    ):
        with pytest.raises(InputError, match=f"maps\\['{signal}'\\] must have shape"):
            dataclasses.replace(flow, maps={**flow.maps, signal: np.zeros(shape)})
    with pytest.raises(InputError, match=r"must hold 0\.\.3"):
        dataclasses.replace(flow, flags={**flow.flags, "flow_map": np.full((1, 3), 9)})


def test_a_grid_off_the_image_tokens_is_refused():
    flow = synthetic_flow(**TINY)
    grid = flow.layout.grids[0]
    stray = dataclasses.replace(flow.layout, grids=(ImageGrid(0, grid.positions + 1, grid.boxes),))
    with pytest.raises(InputError, match="grid 0 of the layout"):
        dataclasses.replace(flow, layout=stray)


def test_nothing_in_a_result_can_be_changed():
    flow = synthetic_flow(**TINY)
    mine = np.zeros((3, 3, 4), np.float32)
    other = dataclasses.replace(flow, attention_share=mine)
    for array in (
        other.attention_share,
        flow.maps["flow_map"],
        flow.pictures[0],
        flow.flags["flow_map"],
    ):
        with pytest.raises(ValueError, match="read-only"):
            array[...] = 1
    assert mine.flags.writeable  # the caller's own array stays the caller's
    with pytest.raises(dataclasses.FrozenInstanceError):
        flow.answer = "blue"


# ----------------------------------------------------------------------- looking


def test_maps_by_name_layer_and_target():
    flow = synthetic_flow(**TINY)
    assert flow.layers == 3
    assert flow.signals == ("attention", "saliency", "llava_cam", "flow_map")
    assert np.array_equal(flow.map("saliency", 1, 2), flow.maps["saliency"][1, 2])
    assert np.array_equal(flow.map("flow_map", target=1), flow.maps["flow_map"][0, 1])
    assert np.array_equal(flow.map("attention", np.int64(2)), flow.maps["attention"][2, 0])
    assert flow.flag("llava_cam", 2) == "undefined"
    assert flow.flag("flow_map") == "ok"


def test_a_target_is_named_by_its_text():
    flow = synthetic_flow(answer_tokens=(" red", " and", " red", " 70"))
    np.testing.assert_array_equal(flow.map("saliency", 1, "70"), flow.maps["saliency"][1, 4])
    np.testing.assert_array_equal(flow.map("saliency", 1, "answer"), flow.maps["saliency"][1, 0])
    assert flow.flag("saliency", 1, "and") == flow.flag("saliency", 1, 2)
    with pytest.raises(InputError, match=r"'red' occurs in the answer several .* 1, 3"):
        flow.map("saliency", 1, "red")
    with pytest.raises(InputError, match=r"'blue', but the targets .* are 'answer', 'red', "):
        flow.map("saliency", 1, "blue")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("gradcam", 0), "signal='gradcam', but this result has attention, saliency, llava_cam"),
        (("attention", 40), r"layer=40, but this model has 3 decoder layers \(0\.\.2\)"),
        (("attention", -1), r"layer=-1, but this model has 3 decoder layers"),
        (("attention", "1"), r"layer='1', but"),
        (("attention", True), r"layer=True, but"),
        (("attention",), r"name a layer \(0\.\.2\)"),
        (("flow_map", 0), "summed over layers: leave layer out"),
        (("attention", 0, 3), r"target=3, but this result has 3 targets \(0\.\.2\)"),
        (("attention", 0, 0, 1), r"image=1, but this result has 1 picture \(0\.\.0\)"),
    ],
)
def test_names_and_ranges_say_what_is_possible(arguments, message):
    flow = synthetic_flow(**TINY)
    with pytest.raises(InputError, match=message):
        flow.grid(*arguments)
    with pytest.raises(InputError, match=message):
        flow.pixel_map(*arguments)


def test_each_picture_has_its_own_grid():
    flow = synthetic_flow(**TINY, sizes=((30, 20), (10, 40)))
    both = flow.map("attention", 0)
    assert np.array_equal(flow.grid("attention", 0, image=0), both[:6].reshape(2, 3))
    assert np.array_equal(flow.grid("attention", 0, image=1), both[6:].reshape(2, 3))


def test_pixel_map_lies_in_the_original_picture():
    flow = synthetic_flow(layers=2, grid=(2, 2), sizes=((40, 20),))
    painted = flow.pixel_map("attention", 0)
    assert painted.shape == (20, 40)
    # the central square is seen; each token fills 10 x 10 pixels of it
    assert np.isnan(painted[:, :10]).all()
    assert np.isnan(painted[:, 30:]).all()
    np.testing.assert_allclose(painted[5:20:10, 15:30:10], flow.grid("attention", 0), rtol=1e-6)


def test_without_known_pixels_the_reason_is_given():
    flow = synthetic_flow(**TINY)
    layout = dataclasses.replace(flow.layout, grids=(), grids_missing="the model shuffles patches")
    flow = dataclasses.replace(flow, layout=layout)
    assert flow.map("attention", 0).shape == (6,)
    for look in (flow.grid, flow.pixel_map):
        with pytest.raises(InputError, match="the model shuffles patches"):
            look("attention", 0)


# -------------------------------------------------------------------- tabulating


def test_frames_are_tidy_and_hold_the_arrays():
    flow = synthetic_flow(**TINY)
    shares = flow.segment_frame()
    assert list(shares) == ["layer", "target", "token", "segment", "attention_share"]
    row = shares.query("layer == 2 and target == 1 and segment == 'image'").iloc[0]
    assert row.token == "red"
    assert row.attention_share == flow.attention_share[2, 1, 1]
    assert len(shares) == flow.attention_share.size
    pairs = flow.saliency_frame()
    columns = ["layer", "target", "token", "source", "destination", "mean", "sum"]
    assert list(pairs) == columns
    row = pairs.query(
        "layer == 1 and target == 0 and source == 'image' and destination == 'answer'"
    )
    assert row["mean"].item() == flow.saliency_mean[1, 0, 1, 1]
    assert row["sum"].item() == flow.saliency_sum[1, 0, 1, 1]
    assert len(pairs) == flow.saliency_sum.size


def test_convergence_is_missing_exactly_where_the_flag_says_so():
    flow = synthetic_flow(layers=6, without_attention=(1,))
    box = object_box(flow.layout.image_sizes[0])
    frame = flow.convergence_frame(box=box)
    figures = ["entropy", "top10_mass", "inside_mass"]
    assert list(frame) == ["signal", "layer", "target", "token", *figures, "flag"]
    ok = frame.flag == "ok"
    assert frame.loc[ok, figures].notna().all(axis=None)
    assert frame.loc[~ok, figures].isna().all(axis=None)
    assert set(frame.flag) == {"ok", "undefined", "empty", "no attention here"}
    assert frame.query("signal == 'flow_map'").layer.isna().all()
    first = frame.query("signal == 'attention' and layer == 0 and target == 0").iloc[0]
    last = frame.query("signal == 'attention' and layer == 5 and target == 0").iloc[0]
    assert first.entropy < last.entropy
    assert first.inside_mass > last.inside_mass
    assert "inside_mass" not in flow.convergence_frame()


def test_a_map_of_zeros_is_empty_even_if_nobody_flagged_it():
    flow = synthetic_flow(**TINY)
    flow = dataclasses.replace(flow, maps={**flow.maps, "flow_map": np.zeros((1, 3, 6))})
    row = flow.convergence_frame().query("signal == 'flow_map'").iloc[0]
    assert row.flag == "empty"
    assert np.isnan(row.entropy)


def test_box_is_refused_before_anything_is_computed():
    flow = synthetic_flow(**TINY)
    with pytest.raises(InputError, match="box="):
        flow.convergence_frame(box=(5, 5, 5, 9))
    with pytest.raises(InputError, match="image=2"):
        flow.convergence_frame(box=(0, 0, 5, 9), image=2)


def test_layers_without_attention_are_missing_not_zero():
    flow = synthetic_flow(**TINY, without_attention=(1,))
    for frame, column in (
        (flow.segment_frame(), "attention_share"),
        (flow.saliency_frame(), "sum"),
        (flow.saliency_frame(), "mean"),
    ):
        assert frame.query("layer == 1")[column].isna().all()
        assert frame.query("layer != 1")[column].notna().all()


def test_frames_take_any_text():
    flow = synthetic_flow(**TINY, hostile=True)
    for frame in (flow.segment_frame(), flow.saliency_frame(), flow.convergence_frame()):
        assert frame.token.str.contains("<script>").any()
        frame.to_csv().encode("utf-8")


# ------------------------------------------------------------------------ keeping


@pytest.mark.parametrize(
    "options",
    [
        TINY,
        {**TINY, "hostile": True, "sizes": ((30, 20), (10, 40), (1, 1))},
        {**TINY, "per_token": False, "layers": 1, "grid": (1, 1)},
        {"layers": 5, "without_attention": (0, 3)},
    ],
)
def test_a_saved_result_is_the_same(tmp_path, options):
    flow = synthetic_flow(**options)
    assert flow.save(tmp_path / "new" / "folder") == tmp_path / "new" / "folder"
    assert_same(flow, InformationFlow.load(tmp_path / "new" / "folder"))
    names = sorted(path.name for path in (tmp_path / "new" / "folder").iterdir())
    assert names == ["flow.json", "flow.safetensors"]


def test_settings_survive_whatever_they_hold(tmp_path):
    settings = {
        "noise": float("nan"),
        "limits": (0.0, float("-inf"), np.float32(0.1)),
        "text": "\x00\ud800\u2028\U0001f9ff",
        "big": 10**30,
        "none": None,
    }
    flow = dataclasses.replace(synthetic_flow(**TINY), settings=settings)
    flow.save(tmp_path)
    loaded = InformationFlow.load(tmp_path).settings
    assert loaded == flow.settings
    assert loaded["noise"] == "nan"
    assert loaded["limits"] == [0.0, "-inf", float(np.float32(0.1))]
    assert loaded["text"] == settings["text"]

    def no_literals(literal):
        raise AssertionError(literal)

    json.loads((tmp_path / "flow.json").read_text("ascii"), parse_constant=no_literals)


def test_extreme_values_keep_their_bits(tmp_path):
    flow = synthetic_flow(**TINY)
    share = np.resize(np.array([-0.0, 1e-45, 3.4e38, 1 / 3], np.float32), (3, 3, 4))
    flow = dataclasses.replace(flow, attention_share=share)
    flow.save(tmp_path)
    assert InformationFlow.load(tmp_path).attention_share.tobytes() == share.tobytes()


def test_the_same_result_gives_the_same_files(tmp_path):
    for name in ("one", "two"):
        synthetic_flow(**TINY).save(tmp_path / name)
    for file in ("flow.json", "flow.safetensors"):
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes()


def edit_json(folder: Path, change) -> None:
    path = folder / "flow.json"
    document = json.loads(path.read_text())
    change(document)
    path.write_text(json.dumps(document))


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-7])


def flip_a_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda d: (d / "flow.json").unlink(), "cannot read .*flow.json"),
        (lambda d: (d / "flow.safetensors").unlink(), "cannot read .*flow.safetensors"),
        (lambda d: truncate(d / "flow.json"), "flow.json.* is truncated or not JSON"),
        (lambda d: (d / "flow.json").write_text("[1, NaN]"), "truncated or not JSON"),
        (lambda d: (d / "flow.json").write_text("[" * 100_000), "truncated or not JSON"),
        (lambda d: (d / "flow.json").write_bytes(b"\xff\xfe\x00"), "truncated or not JSON"),
        (lambda d: (d / "flow.json").write_text('{"a": 1}'), "but not one that"),
        (lambda d: (d / "flow.json").write_text('{"format_version": 2}'), "but not one that"),
        (lambda d: edit_json(d, lambda j: j.update(format_version=99)), "format_version 99"),
        (lambda d: edit_json(d, lambda j: j["result"].update(answer="?")), "the same save"),
        (
            lambda d: (d / "flow.json").write_text(
                (d / "flow.json").read_text().replace('"seed": 0', '"seed": 1e999')
            ),
            "the same save",
        ),
        (lambda d: truncate(d / "flow.safetensors"), "truncated or not a safetensors"),
        (lambda d: (d / "flow.safetensors").write_bytes(b""), "truncated or not a safetensors"),
        (lambda d: flip_a_bit(d / "flow.safetensors"), "the same save"),
        (
            lambda d: (
                synthetic_flow(**TINY, seed=1).save(d / "x")
                and (d / "x" / "flow.safetensors").replace(d / "flow.safetensors")
            ),
            "the same save",
        ),
    ],
)
def test_damaged_files_are_refused_in_one_sentence(tmp_path, damage, message):
    synthetic_flow(**TINY).save(tmp_path)
    damage(tmp_path)
    with pytest.raises(InputError, match=message) as caught:
        InformationFlow.load(tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda body, arrays: arrays.pop("maps.flow_map"), "'maps.flow_map' is missing"),
        (lambda body, arrays: arrays.pop("layout.segments"), "'segments' is missing"),
        (lambda body, arrays: body.pop("answer"), "'answer' is missing"),
        (lambda body, arrays: body.update(targets=7), "wrong form"),
        (lambda body, arrays: arrays.update(extra=np.zeros(1)), "'extra' has no place"),
        (
            lambda body, arrays: arrays.update(
                {"maps.flow_map": arrays["maps.flow_map"].astype(float)}
            ),
            "'maps.flow_map' is float64, not float32",
        ),
        (lambda body, arrays: arrays.update(saliency_sum=arrays["saliency_sum"][1:]), "shape"),
        (lambda body, arrays: body["axes"].update(segments=["a"]), "axes are named differently"),
    ],
)
def test_whole_files_that_hold_no_result_are_refused(tmp_path, change, message):
    synthetic_flow(**TINY).save(tmp_path)
    body, arrays = storage.read_pair(tmp_path)
    change(body, arrays)
    storage.write_pair(tmp_path, body, arrays)
    with pytest.raises(InputError, match=f"holds no result: .*{message}"):
        InformationFlow.load(tmp_path)


def test_a_failed_save_leaves_nothing_behind(tmp_path, monkeypatch):
    flow = synthetic_flow(**TINY)
    (tmp_path / "file").write_text("kept")
    with pytest.raises(InputError, match="file"):
        flow.save(tmp_path / "file" / "below")
    (tmp_path / "taken" / "flow.json").mkdir(parents=True)
    with pytest.raises(InputError, match=r"flow\.json"):
        flow.save(tmp_path / "taken")
    assert [path.name for path in (tmp_path / "taken").iterdir()] == ["flow.json"]

    flow.save(tmp_path / "old")
    write = Path.write_bytes

    def full_disk(self, content):
        if self.name == "flow.json":
            raise OSError(28, "No space left on device")
        return write(self, content)

    monkeypatch.setattr(Path, "write_bytes", full_disk)
    for folder in (tmp_path / "new" / "folder", tmp_path / "old"):
        with pytest.raises(InputError, match="No space left on device"):
            synthetic_flow(**TINY, seed=1).save(folder)
    assert not (tmp_path / "new").exists()
    assert_same(flow, InformationFlow.load(tmp_path / "old"))
    assert len(list((tmp_path / "old").iterdir())) == 2


def test_a_second_save_replaces_the_first(tmp_path):
    synthetic_flow(**TINY).save(tmp_path)
    second = synthetic_flow(**TINY, seed=5)
    second.save(tmp_path)
    assert_same(second, InformationFlow.load(tmp_path))


def test_results_open_without_torch():
    code = (
        "import sys; import vlmflow.result.information_flow, vlmflow.result.tables\n"
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_the_layout_comes_back_whole(tmp_path):
    flow = synthetic_flow(**TINY, sizes=((30, 20), (10, 40)))
    flow.save(tmp_path)
    layout = InformationFlow.load(tmp_path).layout
    assert isinstance(layout, TokenLayout)
    assert np.array_equal(layout.answer_rows, flow.layout.answer_rows)
    assert np.array_equal(layout.grids[1].boxes, flow.layout.grids[1].boxes)
