"""The page and the figures of whatever was measured: one answer, or one of the studies."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias, Union

from vlmflow.errors import InputError
from vlmflow.files import as_path, write_files

if TYPE_CHECKING:
    from vlmflow.result.information_flow import InformationFlow
    from vlmflow.studies.budget.result import TokenBudget
    from vlmflow.studies.certification.certificate import Certificate
    from vlmflow.studies.cliff_layer.study import CliffStudy
    from vlmflow.studies.comparison.comparison import Comparison
    from vlmflow.studies.faithfulness.study import FaithfulnessStudy
    from vlmflow.studies.imported.study import ImportedStudy
    from vlmflow.studies.truncations.results import StudyResult

    Result: TypeAlias = Union[  # noqa: UP007
        InformationFlow,
        Certificate,
        CliffStudy,
        Comparison,
        FaithfulnessStudy,
        ImportedStudy,
        StudyResult,
        TokenBudget,
    ]

# Imports stand inside the functions: the page of one answer needs neither matplotlib nor torch.


def report(
    result: Result | Sequence[InformationFlow],
    path: str | os.PathLike[str],
    *,
    regions: Mapping[str, tuple[float, float, float, float]] | None = None,
) -> Path:
    """Write the page of a result: one HTML file that opens offline and asks for nothing.

    Parameters
    ----------
    result : InformationFlow, or what a study gives
        What was measured. Of two explained answers in a list the page is about the first, and sets
        the maps of the second beside its own.
    path : path
        File to write; parents are created, a file already there is replaced as a whole.
    regions : dict of str to (x0, y0, x1, y1), optional
        For an explained answer: what is to be seen in its first picture, as ``"the red circle"``,
        and where, in the picture's pixels. The page says so where the answer read one of them.

    Returns
    -------
    Path
        The file.

    Raises
    ------
    InputError
        If there is no page of such a thing, or the path cannot be written; nothing half-written
        is left.
    """
    from vlmflow.result.information_flow import InformationFlow

    if isinstance(result, InformationFlow | list | tuple):
        from vlmflow.reports.explain.page import write_report

        flow, other = _one_or_two(result)
        return write_report(flow, path, regions, other)
    if regions is not None:
        raise InputError("regions belong to the picture of an explained answer; leave them out")
    from vlmflow.studies.budget.result import TokenBudget
    from vlmflow.studies.certification.certificate import Certificate
    from vlmflow.studies.cliff_layer.study import CliffStudy
    from vlmflow.studies.comparison.comparison import Comparison
    from vlmflow.studies.faithfulness.study import FaithfulnessStudy
    from vlmflow.studies.imported.study import ImportedStudy
    from vlmflow.studies.truncations.results import StudyResult

    if isinstance(result, CliffStudy):
        from vlmflow.reports.cliff.page import cliff_page

        page = cliff_page(result)
    elif isinstance(result, Certificate):
        from vlmflow.reports.certificate.page import certificate_page

        page = certificate_page(result)
    elif isinstance(result, Comparison):
        from vlmflow.reports.comparison.page import comparison_page

        page = comparison_page(result)
    elif isinstance(result, FaithfulnessStudy):
        from vlmflow.reports.faithfulness.page import faithfulness_page

        page = faithfulness_page(result)
    elif isinstance(result, TokenBudget):
        from vlmflow.reports.budget.page import budget_page

        page = budget_page(result)
    elif isinstance(result, ImportedStudy):
        from vlmflow.reports.imported.page import imported_page

        page = imported_page(result)
    elif isinstance(result, StudyResult):
        from vlmflow.reports.study.page import study_page

        page = study_page(result)
    else:
        raise _unknown(result)
    target = as_path(path)
    write_files(target.parent, {target.name: page.encode("utf-8")})
    return target


def figures(result: Result, directory: str | os.PathLike[str]) -> list[Path]:
    """Write the figures of a result, as PNG (300 dpi) and PDF (vectors).

    Parameters
    ----------
    result : InformationFlow, or what a study gives
        What was measured.
    directory : path
        Created where missing; all figures are written or none.

    Returns
    -------
    list of Path
        The files.

    Raises
    ------
    InputError
        If there are no figures of such a thing, or the directory cannot be written.
    """
    from vlmflow.reports.figures.all_figures import save_figures
    from vlmflow.reports.figures.figure_files import figure_files
    from vlmflow.result.information_flow import InformationFlow

    if isinstance(result, InformationFlow):
        return save_figures(result, directory)
    from vlmflow.studies.budget.result import TokenBudget
    from vlmflow.studies.certification.certificate import Certificate
    from vlmflow.studies.cliff_layer.study import CliffStudy
    from vlmflow.studies.comparison.comparison import Comparison
    from vlmflow.studies.faithfulness.study import FaithfulnessStudy
    from vlmflow.studies.imported.study import ImportedStudy
    from vlmflow.studies.truncations.results import StudyResult

    if isinstance(result, CliffStudy):
        from vlmflow.reports.cliff.figure import cliff_figure

        drawn = {"cliff": cliff_figure(result)}
    elif isinstance(result, Certificate):
        from vlmflow.reports.certificate.figure import certificate_figure

        drawn = {"certificate": certificate_figure(result)}
    elif isinstance(result, Comparison):
        from vlmflow.reports.comparison.figure import comparison_figure

        drawn = {"comparison": comparison_figure(result)}
    elif isinstance(result, FaithfulnessStudy):
        from vlmflow.reports.faithfulness.figure import faithfulness_figures

        drawn = faithfulness_figures(result)
    elif isinstance(result, TokenBudget):
        from vlmflow.reports.budget.figure import budget_figure

        drawn = {"budget": budget_figure(result)}
    elif isinstance(result, ImportedStudy):
        from vlmflow.reports.imported.figure import imported_figure

        drawn = {"imported": imported_figure(result)}
    elif isinstance(result, StudyResult):
        from vlmflow.reports.study.figure import study_figure

        drawn = {"study": study_figure(result)}
    else:
        raise _unknown(result)
    contents = figure_files(drawn)
    folder = write_files(directory, contents)
    return [folder / name for name in contents]


def _one_or_two(
    result: InformationFlow | Sequence[InformationFlow],
) -> tuple[InformationFlow, InformationFlow | None]:
    """Return an explained answer and the one beside it, if two are given."""
    from vlmflow.result.information_flow import InformationFlow

    flows = [result] if isinstance(result, InformationFlow) else list(result)
    for flow in flows:
        if not isinstance(flow, InformationFlow):
            raise InputError(
                "a report of several results takes explained answers, not a "
                f"{type(flow).__name__}; give InformationFlows"
            )
    if len(flows) not in (1, 2):
        raise InputError(
            f"{len(flows)} results were given, but a report sets two explained answers side by "
            "side; give one or two"
        )
    return flows[0], flows[1] if len(flows) == 2 else None


def _unknown(result: object) -> InputError:
    return InputError(
        f"a {type(result).__name__} has no report; give an InformationFlow, a Certificate, "
        "a CliffStudy, a Comparison, a FaithfulnessStudy, an ImportedStudy, a StudyResult or a "
        "TokenBudget"
    )
