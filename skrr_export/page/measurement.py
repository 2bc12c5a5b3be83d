"""A measurement as one self-contained HTML page: what passed, memory, latency, fidelity, and the environment.

The page needs no network and no script. What was not measured is said to be so.
"""

from __future__ import annotations

from skrr_export.measure.record import BundleFacts, Measurement
from skrr_export.page.markup import Markup, element, joined, percent
from skrr_export.page.parts import definitions, document, picture
from skrr_export.page.report.environment import environment_section, footer
from skrr_export.page.report.fidelity import fidelity_section
from skrr_export.page.report.latency import cold_start_section, latency_section
from skrr_export.page.report.memory import memory_chart, memory_tables
from skrr_export.page.report.overview import checks, name, outcome, tiles, title
from skrr_export.page.report.values import mib
from skrr_export.plan import Plan
from skrr_export.plan_view import summary

_STYLES = ("page.css", "measurement.css")
_SECTIONS = {
    "memory": "Memory",
    "latency": "Latency",
    "cold-start": "Cold start",
    "fidelity": "Fidelity",
    "environment": "Environment",
}
"""To jump to, by their identities."""


def page(measurement: Measurement) -> str:
    """Write the report of a measurement.

    Raises:
        PlanError: the measurement's plan is none.
    """
    body = [
        title(measurement),
        _contents(),
        tiles(measurement),
        checks(measurement),
        element("div", _bundle(measurement.bundle), memory_chart(measurement), class_="top"),
        memory_tables(measurement),
        latency_section(measurement),
        cold_start_section(measurement),
        fidelity_section(measurement),
        environment_section(measurement),
        footer(measurement),
    ]
    heading = f"{name(measurement)}: {outcome(measurement)}"
    return document(heading, element("main", joined(body, "\n"), class_="report"), _STYLES)


def _contents() -> Markup:
    links = [element("a", text, href=f"#{identity}") for identity, text in _SECTIONS.items()]
    return element("nav", *links, aria_label="Sections")


def _bundle(bundle: BundleFacts) -> Markup:
    """The plan, and what it leaves."""
    plan = Plan.from_dict(dict(bundle.plan))
    share = f" ({percent(bundle.kept_parameters / bundle.total_parameters)})" if bundle.total_parameters else ""
    facts = {
        "Parameters": f"{bundle.kept_parameters:,} of {bundle.total_parameters:,} kept{share}",
        "Weights": f"{mib(bundle.weights_bytes)} MiB",
        "Path": bundle.path,
        "Manifest": bundle.manifest_sha256,
    }
    return element(
        "section",
        element("h2", "Plan"),
        element("p", summary(plan), class_="note"),
        picture(plan),
        definitions(facts.items()),
        class_="bundle",
    )
