"""A plan as one self-contained HTML page: the picture, how it was found, what it costs, next to other methods.

The page needs no network and no script. What the plan does not record is left out.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePath

from skrr_export.page.chart import NARROW, WIDE, Line, Point, chart
from skrr_export.page.markup import Markup, column, element, joined, number, percent
from skrr_export.page.parts import NOTHING, change, definitions, document, groups, key, picture, table, tile, width
from skrr_export.page.record import Record, ReuseStep, Step, incomparable, printable, read_record
from skrr_export.plan import KINDS, Plan
from skrr_export.plan_view import summary

_COLOURS = ("skrr+", "skrr", "finercut", "shortgpt", "laco", "uniform", "random", "published")
"""The method that has the style sheet's first colour, its second, and so on."""

_RUNNERS_UP = 4
_FEW_LAYERS = 12
"""Up to so many layers the picture leaves room for the details below it."""

_STYLES = ("page.css", "plan.css")


@dataclass(frozen=True, slots=True)
class _Entry:
    """A plan among those that are compared."""

    label: str
    """What it is called in the chart."""
    file: str | None
    """Where it was read from; `None` for the plan that is shown."""
    record: Record
    colour: int
    reason: str | None = None
    """Why it cannot be compared with the plan that is shown."""

    def lines(self) -> list[Line]:
        """Its lines in the chart; the marker is on the last one."""
        curves, final = self.record.curves, self.record.final
        if not curves:
            return [self._line(self.label, (), final)] if final else []
        labels = [f"{self.label}, {curve.name}" if len(curves) > 1 else self.label for curve in curves]
        minor = [
            self._line(label, curve.points, minor=True) for label, curve in zip(labels[:-1], curves[:-1], strict=True)
        ]
        return [*minor, self._line(labels[-1], curves[-1].points, final)]

    def _line(self, label: str, points: tuple[Point, ...], marker: Point | None = None, *, minor: bool = False) -> Line:
        return Line(
            label, self.colour, points, marker, comparable=self.reason is None, shown=self.file is None, minor=minor
        )


def page(plan: Plan, others: Mapping[str, Plan]) -> str:
    """Draw a plan.

    Args:
        plan: to show.
        others: plans to compare it with, by the names of their files.
    """
    record = read_record(plan)
    comparison, reuses, details = _comparison(_entries(plan, record, others)), _reuses(plan, record), _details(record)
    few = plan.num_layers <= _FEW_LAYERS
    side = [picture(plan), reuses if comparison else NOTHING, details if few else NOTHING]
    story = [_headline(plan, record), comparison or reuses]
    body = [
        _title(plan, record),
        element("div", element("div", *side, class_="side"), element("div", *story, class_="story"), class_="top"),
        _steps(record),
        NOTHING if few else details,
        _footer(record),
    ]
    return document(f"{_name(plan, record)}: {summary(plan)}", element("main", joined(body, "\n")), _STYLES)


# The plan and its numbers


def _name(plan: Plan, record: Record) -> str:
    return record.checkpoint or f"{plan.family} encoder"


def _title(plan: Plan, record: Record) -> Markup:
    return element(
        "header",
        element("p", "Skip and re-use plan", class_="eyebrow"),
        element("h1", _name(plan, record)),
        element("p", summary(plan), class_="lede"),
    )


def _headline(plan: Plan, record: Record) -> Markup:
    return element("section", _tiles(plan, record), _terms(record), _facts(record), class_="headline")


def _tiles(plan: Plan, record: Record) -> Markup:
    discrepancy, counts = record.discrepancy, plan.counts()
    tiles = []
    if record.reached is not None:
        wanted = "" if record.wanted is None else f"{percent(record.wanted)} wanted"
        tiles.append(tile("Sparsity", percent(record.reached), wanted))
    if discrepancy.value is not None:
        share = "" if discrepancy.share is None else f"{percent(discrepancy.share)} of the dense mean square"
        tiles.append(tile("Discrepancy D", number(discrepancy.value), share))
    total = sum(counts.values())
    run = f"{total - counts['skip']} run, {counts['skip']} skipped"
    tiles.append(tile("Sub-blocks kept", f"{counts['keep']} of {total}", run))
    return element("div", *tiles, class_="tiles")


def _terms(record: Record) -> Markup:
    """The two parts of the discrepancy, as one bar."""
    prompts, null = record.discrepancy.prompts, record.discrepancy.null
    if prompts is None or null is None or prompts + null == 0:
        return NOTHING
    share = prompts / (prompts + null)
    bar = element(
        "div",
        element("span", class_="on-prompts", style=width(share)),
        element("span", class_="on-null", style=width(1 - share)),
        class_="split",
    )
    meanings = {"on-prompts": f"{number(prompts)} on the prompts", "on-null": f"{number(null)} on the empty prompt"}
    return element("div", bar, key(meanings), class_="terms")


def _facts(record: Record) -> Markup:
    """How the plan was found, and on what it was measured."""
    calibration, space = record.calibration, record.discrepancy.space
    pairs = [
        ("Method", record.method_name),
        ("Order from", record.source),
        ("Measured", "on the embedding itself" if space == "embedding" else space and f"after {space}"),
        ("Prompts", _prompts(record)),
        ("Pipeline", calibration.pipeline),
    ]
    missing = "What this plan costs is not recorded in its file." if record.discrepancy.value is None else ""
    return joined([definitions(pairs), element("p", missing, class_="note") if missing else NOTHING])


def _prompts(record: Record) -> str | None:
    calibration = record.calibration
    if calibration.prompts is None:
        return None
    tokens = "" if calibration.tokens is None else f", {calibration.tokens:,} tokens"
    truncated = f", {calibration.truncated:,} truncated" if calibration.truncated else ""
    return f"{calibration.prompts:,}{tokens}{truncated}"


# Comparison


def _entries(plan: Plan, record: Record, others: Mapping[str, Plan]) -> list[_Entry]:
    """The plan that is shown, then the others; where two have one method, the file tells them apart."""
    records = {name: read_record(other) for name, other in others.items()}
    counted = Counter(each.method_name for each in (record, *records.values()))
    names = Counter(PurePath(name).name for name in others)
    colours = _colours([record, *records.values()])
    entries = [_Entry(record.method_name or "this plan", None, record, colours[0])]
    for (name, other), colour in zip(records.items(), colours[1:], strict=True):
        file, method = printable(name), other.method_name
        short = PurePath(file).name if names[PurePath(name).name] == 1 else file
        label = short if method is None else method if counted[method] == 1 else f"{method} ({short})"
        same = (plan.family, plan.num_layers) == (others[name].family, others[name].num_layers)
        reason = incomparable(record, other) if same else "another encoder"
        entries.append(_Entry(label, file, other, colour, reason))
    return entries


def _colours(records: Sequence[Record]) -> list[int]:
    """A method's own colour, for the first plan of it; the next free one for others."""
    colours: list[int] = []
    for record in records:
        own = _COLOURS.index(record.method) if record.method in _COLOURS else None
        free = [colour for colour in range(len(_COLOURS)) if colour not in colours]
        colours.append(own if own is not None and own in free else (free or [len(colours) % len(_COLOURS)])[0])
    return colours


def _comparison(entries: Sequence[_Entry]) -> Markup:
    drawn = [(entry, line) for entry in entries for line in entry.lines()]
    if not drawn:
        return NOTHING
    lines = [line for _, line in drawn]
    caption = (
        "D is the mean squared error of the embedding against the dense encoder's, on the prompts plus on the empty "
        "prompt: less is better. A circle is a plan; the line to it is D after each drop."
    )
    return element(
        "section",
        element("h2", "What sparsity costs"),
        element("div", chart(lines, WIDE), class_="chart wide"),
        element("div", chart(lines, NARROW), class_="chart narrow"),
        element("p", caption, class_="note"),
        _warning(drawn),
        _line_table(drawn),
        class_="comparison",
    )


def _warning(drawn: Iterable[tuple[_Entry, Line]]) -> Markup:
    reasons = {entry.label: entry.reason for entry, _ in drawn if entry.reason}
    if not reasons:
        return NOTHING
    listed = "; ".join(f"{label}: {reason}" for label, reason in reasons.items())
    return element("p", f"Dashed lines are not comparable with this plan's. {listed}.", class_="note warning")


def _line_table(drawn: Sequence[tuple[_Entry, Line]]) -> Markup:
    ends = [line.marker or line.points[-1] for _, line in drawn]
    write = column([discrepancy for _, discrepancy in ends], digits=3)
    rows = []
    for (entry, line), (sparsity, discrepancy) in zip(drawn, ends, strict=True):
        dashed = "" if line.comparable else " dashed"
        name = element("td", element("span", class_=f"stroke c{line.colour}{dashed}"), line.label, class_="name")
        file = element("td", entry.file or "this plan", class_="file")
        numbers = [element("td", text, class_="n") for text in (f"{sparsity:.1%}", write(discrepancy))]
        rows.append(element("tr", name, file, *numbers, class_="shown" if line.shown and not line.minor else None))
    return table({"line": None, "plan": None, "sparsity": "n", "D": "n"}, rows)


# Re-uses


def _reuses(plan: Plan, record: Record) -> Markup:
    """Every re-use of the plan, those that are recorded in the order in which they are."""
    sources = {
        p.unit: 2 * p.source + p.unit % 2 for p in plan.positions() if p.action == "re-use" and p.source is not None
    }
    recorded = {step.unit: step for step in record.reuses if sources.get(step.unit) == step.source}
    rest = [ReuseStep(unit, source, None, None) for unit, source in sources.items() if unit not in recorded]
    steps = [*recorded.values(), *rest]
    if not steps:
        return NOTHING
    values = [value for step in steps for value in (step.without, step.after) if value is not None]
    write, heads = column(values, digits=3), {"D without": "n", "D with": "n"} if values else {}
    rows = []
    for step, gain in zip(steps, _gains(steps), strict=True):
        pair = [step.without, step.after] if values else []
        numbers = [element("td", "" if value is None else write(value), class_="n") for value in pair]
        rows.append(element("tr", element("td", _unit(step.unit)), element("td", _layer(step.source)), *numbers, gain))
    note = f"What runs in a dropped unit's place{', and D without and with it' if values else ''}."
    return element(
        "section",
        element("h2", "Re-uses"),
        element("p", note, class_="note"),
        table({"in place of": None, "runs": None, **heads, "gain": "n"}, rows),
        class_="reuses",
    )


def _gains(steps: Sequence[ReuseStep]) -> list[Markup]:
    """For each re-use its gain, with a bar."""
    gains = [step.gain for step in steps if step.gain is not None]
    most, least = max(gains, default=0.0), min(gains, default=0.0)
    write = column(gains, digits=2 if most < 10 * least else 1)
    cells = []
    for step in steps:
        if step.gain is None:
            cells.append(element("td", "not recorded", class_="n absent"))
            continue
        share = f" ({change(-step.gain / step.without)})" if step.without else ""
        share_of_most = max(step.gain, 0.0) / most if most > 0 else 0.0
        bar = element("span", element("span", style=width(share_of_most)), class_="bar")
        cells.append(element("td", f"{write(step.gain)}{share}", bar, class_="n gain"))
    return cells


# The order


def _steps(record: Record) -> Markup:
    """The units in the order in which they were dropped; with what else was tried, if that is recorded."""
    if not record.order and not record.steps:
        return NOTHING
    written = ", ".join(map(str, record.order))
    order = element("p", element("code", written), class_="order") if record.order else NOTHING
    return element("section", element("h2", "Order of dropping"), order, _step_notes(record), _step_table(record.steps))


def _step_notes(record: Record) -> Markup:
    notes = ["Unit 2n is layer n's attention, 2n + 1 its feed-forward."]
    dropped = tuple(unit for step in record.steps for unit in step.units)
    if dropped and record.order and dropped != record.order:
        notes.append(
            "A step shows the drop that was best at that time; the order above is the one that won in the end."
        )
    if record.steps and record.method == "finercut":
        notes.append("FinerCut chooses by the plain error of the embedding, which is what its steps show as D.")
    return element("p", " ".join(notes), class_="note")


def _step_table(steps: Sequence[Step]) -> Markup:
    if not steps:
        return NOTHING
    write = column([step.after for step in steps if step.after is not None])
    rows = []
    for index, step in enumerate(steps, start=1):
        cells = [
            element("td", str(index), class_="n faint"),
            element("td", _dropped(step.units)),
            element("td", "" if step.after is None else write(step.after), class_="n"),
            element("td", _runners_up(step)),
            element("td", _tried(step), class_="n faint tried"),
        ]
        rows.append(element("tr", *cells))
    return table({"step": "n", "dropped": None, "D after": "n", "next best": None, "tried": "n tried"}, rows)


def _dropped(units: Sequence[int]) -> Markup:
    if len(units) == 2 and units[0] // 2 == units[1] // 2:
        numbers = element("span", f"{units[0]}, {units[1]}", class_="unit")
        return joined([numbers, f" layer {units[0] // 2}"])
    return joined(map(_unit, units), ", ")


def _runners_up(step: Step) -> Markup:
    """The best candidates that were not taken, and how much more they cost."""
    others = []
    for name, value in step.others()[:_RUNNERS_UP]:
        more = f" {change(value / step.after - 1)}" if step.after else ""
        texts = [element("span", name, class_="unit"), f" {number(value)}", element("span", more, class_="faint")]
        others.append(element("span", *texts, class_="other"))
    return joined(others, " ")


def _tried(step: Step) -> str:
    if not step.candidates and not step.above:
        return ""
    return f"{len(step.candidates)} measured" + (f", {len(step.above)} cut short" if step.above else "")


# Details


def _details(record: Record) -> Markup:
    blocks = groups(
        {
            "Settings": definitions(record.settings.items()),
            "SHA-256": definitions([("Checkpoint", record.checkpoint_sha256), ("Prompts", record.calibration.sha256)]),
            "Work done": definitions(_work(record)),
            "Versions": definitions(record.versions.items()),
        }
    )
    return element("section", element("h2", "Details"), blocks, class_="details") if blocks else NOTHING


def _work(record: Record) -> list[tuple[str, str | None]]:
    """Sub-blocks that were run, each counted once a token."""
    evaluated, naive = record.evaluated, record.naive
    times = f", {naive / evaluated:.1f} times as much" if evaluated and naive else ""
    return [
        ("Search", None if evaluated is None else f"{_count(evaluated)} sub-block tokens"),
        ("Naive loop", None if naive is None else f"{_count(naive)}{times}"),
    ]


def _count(count: int) -> str:
    for factor, name in ((10**12, "trillion"), (10**9, "billion"), (10**6, "million")):
        if count >= factor:
            return f"{count / factor:.1f} {name}"
    return f"{count:,}"


def _footer(record: Record) -> Markup:
    return element("footer", f"Plan made by {record.tool}.") if record.tool else NOTHING


# Units


def _unit(unit: int) -> Markup:
    return joined([_layer(unit), " ", element("span", KINDS[unit % 2].replace("_", "-"), class_="whole")])


def _layer(unit: int) -> Markup:
    return element("span", element("span", str(unit), class_="unit"), f" layer {unit // 2}", class_="whole")
