"""The page of a certificate: one HTML file that opens offline and asks for nothing."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from vlmflow.escape_invisible import shown
from vlmflow.reports.certificate.figure import certificate_figure, note
from vlmflow.reports.inline_svg import inline_figure
from vlmflow.reports.plain_page import plain_page
from vlmflow.studies.certification import sentences
from vlmflow.studies.certification.sentences import NAME_SHOWN, by_exit, by_group

if TYPE_CHECKING:
    from vlmflow.studies.certification.certificate import Certificate

TEXT_SHOWN, FAILURES_SHOWN = 600, 100


def certificate_page(certificate: Certificate) -> str:
    """Write a certificate as one page of HTML; texts are escaped, and it has no scripts."""
    depth = int(certificate.model["layers"])
    frame = certificate.skill_frame()
    # Where everybody or nobody may leave, there is nothing to tell.
    telling = frame.groupby("layer")["area"].transform("count") > 0
    frame = frame[telling]
    return plain_page("certificate.html.j2").render(
        model=shown(str(certificate.model["name"]), NAME_SHOWN),
        headline=sentences.headline(certificate),
        second=sentences.second_line(certificate),
        distance=sentences.distance_words(certificate),
        groups_words=sentences.groups_words(certificate),
        promise=sentences.promise_words(certificate),
        confidence=f"{100 * certificate.settings.confidence:g} %",
        figure=inline_figure(
            lambda layout: certificate_figure(certificate, layout),
            "Risk against what is spared, and how well signals tell who may leave, by layer; every "
            "number is in the tables below",
        ),
        note=note(certificate),
        rivals=[
            {
                "name": rival.name,
                "what": shown(rival.what, TEXT_SHOWN),
                "setting": rival.setting or "nothing accepted" if rival.name != "oracle" else "",
                "saved": _percent(rival.saved),
                "ends": f"{100 * rival.low:.1f} to {100 * rival.high:.1f}",
                "risk": _percent(rival.risk),
            }
            for rival in certificate.rivals
        ],
        groups=[_row(row, "group") for row in by_group(certificate.runs)],
        exits=[_row(row, "exit") for row in by_exit(certificate.runs, depth)],
        seconds={name: f"{1000 * own:.1f} ms" for name, own in certificate.seconds.items()},
        layers=sorted(frame["layer"].unique().tolist()),
        silent=sorted(set(certificate.layers) - set(frame["layer"])),
        skills=[
            {"signal": name, "areas": [_area(row) for row in rows.to_dict("records")]}
            for name, rows in frame.groupby("signal", sort=False)
        ],
        policy=None if certificate.policy is None else shown(repr(certificate.policy), TEXT_SHOWN),
        failures=[shown(text, TEXT_SHOWN) for text in certificate.failures[:FAILURES_SHOWN]],
        settings={
            **vars(certificate.settings),
            "samples in a batch at most": certificate.largest_batch,
            **certificate.model,
            **certificate.versions,
        },
    )


def _row(row: dict[str, Any], name: str) -> dict[str, Any]:
    return {
        "name": shown(str(row[name]), NAME_SHOWN),
        "n": row["n"],
        "changed": row["changed"],
        "risk": f"{_percent(row['risk'])} ({100 * row['low']:.1f} to {100 * row['high']:.1f})",
        "loss": "" if row["loss"] is None else f"{100 * row['loss']:+.1f}",
    }


def _area(row: Mapping[Any, Any]) -> dict[str, str]:
    if row["area"] is None or row["area"] != row["area"]:
        return {"area": "", "ends": "", "within": ""}
    within = row["within"]
    return {
        "area": f"{row['area']:.2f}",
        "ends": f"{row['low']:.2f} to {row['high']:.2f}",
        "within": "" if within is None or within != within else f"{within:.2f}",
    }


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"
