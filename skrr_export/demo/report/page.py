"""The demo as one self-contained HTML page, for readers who have never heard of it.

The page needs no network and no script; its images are in it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from skrr_export.demo.record import Demo, Variant
from skrr_export.demo.report.grid import grid_section
from skrr_export.demo.report.numbers import costs_section, fidelity_section, scores_section
from skrr_export.demo.sampling import Images
from skrr_export.page.markup import Markup, element, joined, number, percent
from skrr_export.page.parts import NOTHING, definitions, document, groups, picture, tile
from skrr_export.page.record import read_record
from skrr_export.page.report.values import mib, span
from skrr_export.plan_view import summary

_STYLES = ("page.css", "measurement.css", "demo.css")
_NAME = "Skrr in pictures"
_SECTIONS = {
    "images": "Images",
    "scores": "Scores",
    "costs": "Memory and time",
    "fidelity": "Fidelity",
    "plans": "Plans",
    "limits": "Limits",
    "more": "Go on",
}
"""To jump to, by their identities."""


def page(demo: Demo, images: Mapping[str, Images]) -> str:
    """Write the report.

    Args:
        demo: what was found.
        images: for each encoder, by its name, an image a task.
    """
    body = [
        _title(demo),
        _contents(),
        _tiles(demo),
        _failures(demo),
        grid_section(demo, images),
        scores_section(demo),
        costs_section(demo),
        fidelity_section(demo),
        _plans(demo),
        _limits(demo),
        _more(demo),
        _footer(demo),
    ]
    heading = f"{_NAME}: {percent(_saved(demo))} of the text encoder gone"
    return document(heading, element("main", joined(body, "\n"), class_="report demo"), _STYLES, images=True)


# The top


def _title(demo: Demo) -> Markup:
    text = (
        "A text-to-image model reads your prompt with a text encoder, which can take more memory than all the rest of "
        "it. Here a small trained model draws the same prompts from the same noise three times: with its whole "
        f"encoder, with {percent(_saved(demo))} of the encoder's weights left out and the gaps skipped, and with Skrr, "
        "which leaves out as many and lets layers that are kept run again in the gaps."
    )
    if demo.passed:
        badge = element("p", "Passed: each exported encoder gives what transformers gives", class_="badge passed")
    else:
        badge = element("p", "Failed: an exported encoder does not give what transformers gives", class_="badge failed")
    return element(
        "header",
        element("p", "A demonstration of skrr-export", class_="eyebrow"),
        element("h1", _NAME),
        element("p", text, class_="lede"),
        badge,
    )


def _contents() -> Markup:
    links = [element("a", text, href=f"#{identity}") for identity, text in _SECTIONS.items()]
    return element("nav", *links, aria_label="Sections")


def _tiles(demo: Demo) -> Markup:
    """The numbers that matter most."""
    dense, skip, skrr = (demo.variant(name) for name in ("dense", "skip", "skrr"))
    whole, kept = dense.scores["overall"], skrr.scores["overall"]
    worst = max(demo.variants, key=_drift)
    tiles = [
        tile(
            "Encoder's size saved",
            percent(_saved(demo)),
            f"{mib(skrr.weights_bytes)} MiB of weights, {mib(dense.weights_bytes)} MiB before",
        ),
        tile(
            "Score kept",
            percent(kept / whole) if whole else "nothing to keep",
            f"Skrr's images show {kept:.2f} of the prompts, the dense encoder's {whole:.2f}, those of skipping alone "
            f"{skip.scores['overall']:.2f}; each \N{PLUS-MINUS SIGN} {_margin(demo):.2f} at most",
        ),
        tile(
            "Drift",
            number(_drift(worst)) if math.isfinite(_drift(worst)) else "not finite",
            f"the error of the export itself, relative L2; the worst of the three, {worst.title}",
        ),
    ]
    return element("section", element("div", *tiles, class_="tiles"), class_="headline")


def _failures(demo: Demo) -> Markup:
    if demo.passed:
        return NOTHING
    items = [element("li", element("span", failure)) for failure in demo.failures]
    return element("section", element("h2", "What failed"), element("ul", *items, class_="failures"), class_="checks")


def _saved(demo: Demo) -> float:
    return 1 - demo.variant("skrr").weights_bytes / demo.variant("dense").weights_bytes


def _margin(demo: Demo) -> float:
    return max(variant.margin for variant in demo.variants)


def _drift(variant: Variant) -> float:
    tokens = variant.verification.drift.tokens
    return math.inf if tokens is None or tokens.relative_l2 is None else tokens.relative_l2


# The plans, and what to make of it all


def _plans(demo: Demo) -> Markup:
    note = (
        "Each layer of the encoder has two parts, attention and feed-forward. A plan says of each place which layer's "
        "weights run there; weights that run nowhere are not in the bundle. "
    )
    found = (
        "These plans come with the package; without --fast they are searched anew."
        if demo.fast
        else "These were searched in this run."
    )
    columns = [_plan(variant) for variant in demo.variants if variant.plan_file is not None]
    return element(
        "section",
        element("h2", "Plans"),
        element("p", note + found, class_="note"),
        element("div", *columns, class_="plans"),
        id="plans",
    )


def _plan(variant: Variant) -> Markup:
    record = read_record(variant.plan)
    discrepancy, calibration = record.discrepancy, record.calibration
    re_uses = variant.plan.counts()["re-use"]
    facts = {
        "Parameters": f"{variant.kept_parameters:,} of {variant.total_parameters:,} kept",
        "Method": record.method_name and f"{record.method_name}{'' if re_uses else ', without re-use'}",
        "Captions": None if calibration.prompts is None else f"{calibration.prompts:,}",
        "D": None
        if discrepancy.value is None
        else f"{number(discrepancy.value)}: what the denoiser sees change, on those captions",
        "File": variant.plan_file,
    }
    return element(
        "div",
        element("h3", variant.title),
        element("p", summary(variant.plan), class_="note"),
        picture(variant.plan),
        definitions(facts.items()),
    )


def _limits(demo: Demo) -> Markup:
    dense = demo.variant("dense")
    share = dense.total_parameters / (dense.total_parameters + demo.denoiser_parameters)
    count = len(demo.tasks)
    limits = [
        "A toy world: drawings of flat shapes, and captions from a grammar of some hundred words. Its judge is "
        "exact, which no judge of photographs is; but what holds here need not hold there.",
        f"One encoder: {dense.total_parameters:,} parameters in {dense.plan.num_layers} layers, {percent(share)} of "
        "this model. The T5-XXL of FLUX.1 and SD3 has 4.8 billion; there the paper's 42% are 4 GB.",
        f"{count} images for each encoder: overall scores that differ by less than about "
        f"{_margin(demo):.2f} may differ by chance.",
        "Times are of this machine, while it did whatever else it did; a dot in the charts is one run.",
    ]
    return element(
        "section",
        element("h2", "Limits"),
        element("ul", *(element("li", limit) for limit in limits), class_="notes"),
        id="limits",
    )


def _more(demo: Demo) -> Markup:
    """What a reader can do with the files beside the page, and what decides its numbers."""
    skrr = demo.variant("skrr")
    commands = "\n".join(
        [
            f"skrr-export inspect {skrr.bundle}",
            f'skrr-export encode {skrr.bundle} "a red circle left of a blue square" -o embeddings.npz',
            f"skrr-export plan show {skrr.plan_file} --html plan.html --with {demo.variant('skip').plan_file}",
        ]
    )
    settings = {
        "Sparsity": f"{percent(demo.sparsity)} asked for",
        "Prompts": f"{len(demo.tasks)}, seed {demo.seed}",
        "Images": f"{demo.steps} steps, guidance {demo.guidance:g}",
        "Denoiser": f"{demo.denoiser_parameters:,} parameters",
    }
    memory = demo.machine.get("memory_bytes")
    host = {
        "Processor": str(demo.machine.get("cpu")),
        "Cores": str(demo.machine.get("cores")),
        "Memory": f"{mib(memory)} MiB" if isinstance(memory, int) else None,
    }
    blocks = {
        "Settings": definitions(settings.items()),
        "Machine": definitions(host.items()),
        "Versions": definitions(demo.versions.items()),
    }
    return element(
        "section",
        element("h2", "Go on"),
        element("p", "In the directory of this page, with the files that lie beside it:", class_="note"),
        element("pre", element("code", commands)),
        groups(blocks),
        class_="environment",
        id="more",
    )


def _footer(demo: Demo) -> Markup:
    return element("footer", f"Made by {demo.tool}, from {demo.started}, in {span(demo.seconds)}.")
