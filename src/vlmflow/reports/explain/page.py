"""The page of one explained sample: a single HTML file that opens offline and asks for nothing."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from markupsafe import Markup

from vlmflow.escape_invisible import shown
from vlmflow.files import as_path, write_files
from vlmflow.lvlm.layout import SEGMENTS
from vlmflow.reports.content_policy import digest
from vlmflow.reports.explain.page_data import Packed, page_data
from vlmflow.reports.explain.sources import LIBRARIES, opening_script, source, style, templates
from vlmflow.result.convergence import top_mass
from vlmflow.result.reading import Box
from vlmflow.result.sentences import image_share_sentence, percent, shown_things
from vlmflow.result.shown_map import shown_map
from vlmflow.result.verdict import UNTESTED, verdict

if TYPE_CHECKING:
    from vlmflow.result.information_flow import InformationFlow

MAX_BYTES = 2_900_000
PROMPT_CHARACTERS = 20_000
QUESTION_CHARACTERS = 2_000
SETTING_CHARACTERS = 1_000
SETTINGS_SHOWN = 100


def write_report(
    flow: InformationFlow,
    path: str | os.PathLike[str],
    regions: Mapping[str, Box] | None = None,
    other: InformationFlow | None = None,
) -> Path:
    """Write one result as one self-contained page; see :func:`vlmflow.reports.write.report`.

    The file holds everything it shows (under 3 MB), loads nothing, and its own content policy
    forbids it to. Where the maps of all answer tokens do not fit, those of the whole answer and of
    the first tokens are kept, and the page says so. The maps of ``other`` can be chosen beside
    those of ``flow``, which the page is about.
    """
    target = as_path(path)
    write_files(target.parent, {target.name: report_page(flow, regions, other).encode("utf-8")})
    return target


def second_line(flow: InformationFlow) -> str:
    """Name the layer with the largest image share, and how concentrated the shown map is."""
    image = flow.attention_share[:, 0, SEGMENTS.index("image")]
    peak = int(image.argmax())
    sentences = []
    if flow.layers > 1 and image[peak] > 0:
        sentences.append(f"The image share is largest at layer {peak} ({percent(image[peak])}).")
    signal, layer = shown_map(flow.about, flow.flags, flow.attention_share) or ("", None)
    if signal and layer is None:
        mass = top_mass(flow.maps[signal][0, 0])
        if mass is not None:
            sentences.append(
                f"The strongest 10\u00a0% of the image tokens hold {percent(mass)} of the "
                f"{shown(flow.about[signal].label, 200)}."
            )
    return " ".join(sentences)


def report_page(
    flow: InformationFlow,
    regions: Mapping[str, Box] | None = None,
    other: InformationFlow | None = None,
) -> str:
    """Return the page of one result as text; see :func:`write_report`."""
    libraries = [source("vendor", name) for name in LIBRARIES]
    script, css = opening_script(), style()
    around = {
        "policy": _policy([*libraries, script], css),
        "style": Markup(css),
        "libraries": [Markup(library) for library in libraries],
        "script": Markup(script),
    }
    return _rendered("page.html.j2", around, flow, regions, other)


def mounted_report(flow: InformationFlow, regions: Mapping[str, Box] | None = None) -> str:
    """Return what a page that has the style and scripts already shows of one result.

    The sections of :func:`report_page` with their data, for the script that
    :func:`vlmflow.reports.explain.sources.mounting_script` returns.
    """
    return _rendered("mounted.html.j2", {}, flow, regions, None)


def _rendered(
    name: str,
    around: Mapping[str, Any],
    flow: InformationFlow,
    regions: Mapping[str, Box] | None,
    other: InformationFlow | None,
) -> str:
    notices = [source("vendor", f"{library}.LICENSE").strip() for library in ("d3", "plot")]
    whole = verdict(flow, 0, regions)
    share = image_share_sentence(flow.attention_share, flow.layout, flow.subject)
    texts = {
        **around,
        "notices": notices,
        "headline": whole.headline,
        "picture_says": whole.picture,
        "share": share if share != whole.headline else "",
        "second_line": second_line(flow),
        "untested": UNTESTED,
        "tested": shown(str(flow.trust[0]), SETTING_CHARACTERS) if flow.trust else "",
        "subject": flow.subject,
        "of_answer": flow.words is None,
        "model": shown(flow.model, SETTING_CHARACTERS),
        "question": shown(flow.question, QUESTION_CHARACTERS),
        "prompt": shown(flow.prompt, PROMPT_CHARACTERS),
        "command": shown(flow.settings.get("command") or "", QUESTION_CHARACTERS),
        "settings": _rows(_settings(flow)),
        "versions": _rows(flow.versions),
        "layers": flow.layers,
        "saliency": flow.saliency_sum is not None,
        "signals": len(flow.maps),
        "words": flow.text_attention is not None and flow.text_attention.rows.size > 0,
        "things": shown_things(flow.layout),
        "truncated": _truncated(flow),
        "other": other is not None,
        "first_picture": _first_picture(flow),
        "grouped": any(
            group is not None and group.last > group.first for group in flow.layout.frames
        ),
    }
    template = templates().get_template(name)
    empty = template.render(**texts, head=Markup("{}"), storage="")
    data = page_data(flow, MAX_BYTES - len(empty.encode("utf-8")), regions, other)
    return template.render(**texts, head=_json(data.head), storage=_storage(data, flow))


def _first_picture(flow: InformationFlow) -> str:
    """Name the first picture where there are several."""
    several = len(flow.pictures) > 1
    return (flow.layout.frames_label(0) or "picture 1") if several else ""


def _truncated(flow: InformationFlow) -> str:
    """Say what the truncated run was and answered; empty where there was none."""
    truncated = flow.truncated
    if truncated is None:
        return ""
    settings = ", ".join(f"{name}={_plain(value)}" for name, value in truncated.settings.items())
    same = "the same answer" if truncated.answer == flow.answer else "another answer"
    return (
        f"With image tokens removed ({shown(settings, SETTING_CHARACTERS)}) the model answers "
        f"\u201c{shown(truncated.answer, SETTING_CHARACTERS)}\u201d, {same}. The bars show how "
        "many image tokens each layer saw then."
    )


def _plain(value: Any) -> str:
    """Write one setting of a truncation as the command line takes it."""
    if isinstance(value, dict):
        parameters = ", ".join(f"{k}={_plain(v)}" for k, v in value.items() if k != "name")
        return str(value.get("name", "")) + (f"({parameters})" if parameters else "")
    return ":".join(map(str, value)) if isinstance(value, list) else str(value)


def _storage(data: Packed, flow: InformationFlow) -> str:
    """Say what the page holds of the result, and what it does not."""
    targets = len(flow.targets)
    whole = "the whole answer" if flow.words is None else flow.subject
    exact = "The exact values are in flow.safetensors."
    kept = [
        f"Map values are stored in {data.bits} bits, curves and tables in 16, on a square-root "
        f"scale against the largest of their row; pictures are display copies. {exact}"
    ]
    if data.mapped < targets:
        kept.append(
            f"To stay under 3 MB this page holds maps for {data.mapped} of {targets} targets "
            f"({whole} first, then its tokens in order)"
            + (f" and curves for {data.charted}." if data.charted < targets else ".")
        )
    words = data.head["words"]
    if words is not None:
        kept.append(f"What words read of the picture is stored in {words['bits']} bits.")
        if words["unshown"]:
            kept.append(
                f"{words['unshown']} words farther from the border of question and answer are not "
                "shown one by one."
            )
        if words["unmapped"]:
            kept.append(f"{words['unmapped']} of the words shown have no map in this page.")
    return " ".join(kept)


def _settings(flow: InformationFlow) -> dict[str, Any]:
    """List the settings without the command, those inside a setting spread out."""
    flat: dict[str, Any] = {}
    for name, value in flow.settings.items():
        if isinstance(value, dict):
            flat |= {f"{name}: {inner}": setting for inner, setting in value.items()}
        elif name != "command":
            flat[name] = value
    return flat


def _rows(values: Any) -> list[tuple[str, str]]:
    """Name and value of every entry as bounded, visible text."""
    rows = []
    for name, value in list(values.items())[:SETTINGS_SHOWN]:
        text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
        rows.append((shown(name, SETTING_CHARACTERS), shown(text, SETTING_CHARACTERS)))
    if len(values) > SETTINGS_SHOWN:
        rows.append(("…", f"{len(values) - SETTINGS_SHOWN} more in flow.json"))
    return rows


def _json(value: Any) -> Markup:
    """JSON that cannot end or open anything inside a script element."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return Markup(text)


def _policy(scripts: list[str], style: str) -> str:
    """Content policy: the scripts and the style in this file by their hash, data pictures only."""
    return (
        "default-src 'none'; base-uri 'none'; form-action 'none'; img-src data:; "
        f"style-src {digest(style)}; script-src {' '.join(map(digest, scripts))}"
    )
