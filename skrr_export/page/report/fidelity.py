"""Fidelity: the drift of each subject, the loss of the plan, what must not change a result, and the worst prompts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from skrr_export.measure.fidelity import Deviation
from skrr_export.measure.record import Agreement, Measurement, PromptDeviation, SubjectRecord
from skrr_export.page.markup import Markup, element, joined, number
from skrr_export.page.parts import NOTHING, table
from skrr_export.page.report.histogram import Histogram, histograms
from skrr_export.page.report.values import ABSENT, absent_row, cell, cosine, group_row, subject_head

_WORST = 5
"""Prompts that are listed."""
_LETTERS = 110
"""Of a prompt that are shown; a pointer over it shows all."""


@dataclass(frozen=True, slots=True)
class _Comparison:
    """One of the two references that embeddings are compared with."""

    name: str
    note: str
    of: Callable[[SubjectRecord], Agreement | None]


_DRIFT = _Comparison(
    "Drift",
    "Against transformers in fp32 under the same plan: the error of the export, next to PyTorch's own in the same "
    "precision. It should be rounding and nothing else.",
    lambda subject: subject.drift,
)
_LOSS = _Comparison(
    "Loss",
    "Against the dense original in fp32: what the plan costs, for every subject that runs it. The dense encoder's own "
    "row is the error of its precision.",
    lambda subject: subject.loss,
)
_OUTPUTS: dict[str, Callable[[Agreement], Deviation | None]] = {
    "Tokens": lambda agreement: agreement.tokens,
    "Padding": lambda agreement: agreement.padding,
    "Pooled vectors": lambda agreement: agreement.pooled,
}
"""Which rows of an encoder's outputs are told apart; it need not give all of them."""
_ROWS: dict[str, Callable[[Agreement], Deviation | None]] = {
    **_OUTPUTS,
    "Empty prompt": lambda agreement: agreement.null,
    "After the denoiser's projection": lambda agreement: agreement.projected,
}
"""And which prompts besides, and in what form."""


def fidelity_section(measurement: Measurement) -> Markup:
    """How close the embeddings are to what they should be."""
    subjects = measurement.subjects
    needs = ": it takes the original checkpoint, --reference" if measurement.settings.reference is None else ""
    return element(
        "section",
        element("h2", "Fidelity"),
        _comparison(_DRIFT, [subject for subject in subjects if subject.planned], "Not measured."),
        _comparison(_LOSS, subjects, f"Not measured{needs}."),
        _invariance(subjects),
        _worst_prompts(_DRIFT, subjects),
        _worst_prompts(_LOSS, subjects),
        id="fidelity",
    )


# Against a reference


def _comparison(comparison: _Comparison, subjects: Sequence[SubjectRecord], missing: str) -> Markup:
    known = [(subject, agreement) for subject in subjects if (agreement := comparison.of(subject)) is not None]
    if not known:
        content = element("p", missing, class_="note")
    else:
        rows = "prompts" if all(agreement.tokens is None for _, agreement in known) else "tokens"
        shapes = [Histogram(subject.title, subject.role, agreement.cosine_distances) for subject, agreement in known]
        content = joined(
            [
                element("p", comparison.note, class_="note"),
                _deviations(comparison, subjects),
                element("h4", f"{comparison.name} of single {rows}: cosine distance, logarithmic"),
                histograms(f"{comparison.name}, cosine distance of {rows}", shapes, rows),
            ]
        )
    return element("div", element("h3", comparison.name), content, class_="block")


def _deviations(comparison: _Comparison, subjects: Sequence[SubjectRecord]) -> Markup:
    """A table in groups: of each kind of rows every subject's, so that one sees whose error it is."""
    quantiles = _quantiles(comparison, subjects)
    heads = ["relative L2", "worst cosine", "cosine, p1", "cosine, mean", "largest error"]
    columns = {
        "subject": None,
        **dict.fromkeys(heads, "n"),
        **{f"{100 * float(quantile):g}% within": "n" for quantile in quantiles},
        "rows": "n",
    }
    rows: list[Markup] = []
    agreements = {subject.name: comparison.of(subject) for subject in subjects}
    for name, pick in _ROWS.items():
        found = {who: None if agreement is None else pick(agreement) for who, agreement in agreements.items()}
        if name in _OUTPUTS and not any(found.values()):
            continue
        if not any(deviation and deviation.tokens for deviation in found.values()):
            rows.append(group_row(f"{name}: {ABSENT}", len(columns)))
            continue
        # Why a subject has no agreement is said once.
        listed = [subject for subject in subjects if not rows or agreements[subject.name] is not None]
        rows.append(group_row(name, len(columns)))
        rows += [_row(subject, found[subject.name], quantiles, len(columns) - 1) for subject in listed]
    return table(columns, rows)


def _quantiles(comparison: _Comparison, subjects: Sequence[SubjectRecord]) -> list[str]:
    """Of the absolute error, all that any subject has."""
    agreements = [agreement for subject in subjects if (agreement := comparison.of(subject)) is not None]
    found = {
        quantile
        for agreement in agreements
        for pick in _ROWS.values()
        if (deviation := pick(agreement)) is not None
        for quantile in deviation.error_quantiles or ()
    }
    return sorted(found, key=float)


def _row(subject: SubjectRecord, deviation: Deviation | None, quantiles: Sequence[str], columns: int) -> Markup:
    if deviation is None:
        return absent_row(subject, columns)
    errors = deviation.error_quantiles or {}
    tokens = f"{deviation.tokens:,}" + _nonfinite(deviation.nonfinite)
    return element(
        "tr",
        subject_head(subject),
        cell(deviation.relative_l2, number),
        *(cell(value, cosine) for value in (deviation.cosine_min, deviation.cosine_p1, deviation.cosine_mean)),
        cell(deviation.max_abs, number),
        *(cell(errors.get(quantile), number) for quantile in quantiles),
        element("td", tokens, class_="n warn" if deviation.nonfinite else "n"),
    )


def _nonfinite(count: int) -> str:
    return f" ⚠ {count:,} NaN or infinite" if count else ""


# What must not change a result


def _invariance(subjects: Sequence[SubjectRecord]) -> Markup:
    columns = {
        "the same batch again": "repeat",
        "a prompt alone, not in a batch": "batch",
        "a prompt without its padding": "sequence",
    }
    rows = [
        absent_row(subject, len(columns))
        if subject.invariance is None
        else element(
            "tr",
            subject_head(subject),
            *(cell(getattr(subject.invariance, field), number) for field in columns.values()),
        )
        for subject in subjects
    ]
    note = "Relative L2 of what changes though it must not, of the worst prompt; 0 is bit for bit."
    return element(
        "div",
        element("h3", "Invariances"),
        element("p", note, class_="note"),
        table({"subject": None, **dict.fromkeys(columns, "n")}, rows),
        class_="block",
    )


# The worst prompts


def _worst_prompts(comparison: _Comparison, subjects: Sequence[SubjectRecord]) -> Markup:
    """The prompts that deviate most in any target; each once."""
    worst: dict[str, tuple[PromptDeviation, SubjectRecord]] = {}
    for subject in subjects:
        agreement = comparison.of(subject)
        if agreement is None or subject.role != "target":
            continue
        for one in agreement.prompts:
            if one.prompt not in worst or _badness(one) > _badness(worst[one.prompt][0]):
                worst[one.prompt] = one, subject
    ordered = sorted(worst.values(), key=lambda pair: _badness(pair[0]), reverse=True)[:_WORST]
    if not ordered:
        return NOTHING
    heads = dict.fromkeys(["tokens", "relative L2", "worst cosine", "cosine, mean"], "n")
    return element(
        "div",
        element("h3", f"Prompts with the largest {comparison.name.lower()}"),
        table({"prompt": "prompt", "target": None, **heads}, [_prompt_row(one, subject) for one, subject in ordered]),
        class_="block",
    )


def _badness(prompt: PromptDeviation) -> tuple[int, float]:
    """What is not finite is worst."""
    return prompt.nonfinite, -1.0 if prompt.relative_l2 is None else prompt.relative_l2


def _prompt_row(prompt: PromptDeviation, subject: SubjectRecord) -> Markup:
    text = prompt.prompt
    shown = text if len(text) <= _LETTERS else f"{text[:_LETTERS].rstrip()}…"
    quoted = element("td", shown, class_="prompt", title=text) if text else element("td", "empty", class_="absent")
    tokens = f"{prompt.tokens:,}" + _nonfinite(prompt.nonfinite)
    return element(
        "tr",
        quoted,
        element("td", element("code", subject.name, title=subject.title)),
        element("td", tokens, class_="n warn" if prompt.nonfinite else "n"),
        cell(prompt.relative_l2, number),
        cell(prompt.cosine_min, cosine),
        cell(prompt.cosine_mean, cosine),
    )
