"""Write the README's tables from what the other benchmarks measured.

    python benchmarks/readme.py [--check] [--table NAME ...] [--work DIR] [--readme FILE]

A table stands between `<!-- run -->` and `<!-- /run -->`, and likewise for the other names in `TABLES`; what lies
outside is left alone. With --check nothing is written, and the exit code is 1 if the README is not up to date.
"""

from __future__ import annotations

import argparse
import json
import statistics
import textwrap
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import reduce
from pathlib import Path
from typing import Any

from exporters import LABELS, OURS, REPOSITORY
from overflow import BF16, REFERENCE
from overflow import OURS as RESCALED
from process import MIB
from report import add_work_argument, describe

from skrr_export.errors import SkrrError
from skrr_export.measure.comparing import read_measurement
from skrr_export.measure.subjects import DENSE, PLANNED
from skrr_export.staging import write_file

Document = Mapping[str, Any]
Column = tuple[str, Callable[[Document], str]]
"""Its heading, and its cell for a subject or a record."""

SLOT = "text_encoder"
"""Where most pipelines have their only text encoder."""
WAYS = ("naive", "ours")
NOTABLE = 0.01
"""Share of all parameters by which a plan may drop more than another, and count as dropping the same."""
PRINTED = ("torch", "transformers", "onnxruntime")
"""Packages whose versions stand under a table."""


def number(value: float | None, form: str = "{:.2f}", unit: float = 1) -> str:
    """A cell; what was not measured is never 0."""
    return "not measured" if value is None else form.format(value / unit)


def mebibytes(value: float | None) -> str:
    """A size in memory."""
    return number(value, "{:,.0f} MiB", MIB)


def error(value: float | None) -> str:
    """A relative error, such as 2.7e-2."""
    return number(value, "{:.1e}").replace("e-0", "e-").replace("e+00", "")


def bold(text: str, *, ours: bool) -> str:
    """A first cell, which is bold for what is ours."""
    return f"**{text}**" if ours else text


def find(document: Document | None, *path: str) -> Any:
    """What lies deeper in a document; `None` if it was not measured."""
    return reduce(lambda found, name: None if found is None else found.get(name), path, document)


def table(columns: Sequence[Column], rows: Sequence[Document], line: str) -> str:
    """A table as GitHub draws it, and the line below."""
    lines = ["| " + " | ".join(heading for heading, _ in columns) + " |", "|---" * len(columns) + "|"]
    lines += ["| " + " | ".join(cell(row) for _, cell in columns) + " |" for row in rows]
    return "\n".join([*lines, "", textwrap.fill(line, 120, break_on_hyphens=False)])


def surroundings(document: Document) -> str:
    """The machine and the versions."""
    found = document["versions"]
    return f"{describe(document['machine'])}; {', '.join(f'{name} {found[name]}' for name in PRINTED if name in found)}"


# Measurements


def read_passed(work: Path, name: str) -> Document:
    """A measurement.

    Raises:
        SystemExit: a check failed in it.
    """
    document = read_measurement(work / f"{name}.json")
    if not document["passed"]:
        raise SystemExit(f"{work / f'{name}.json'}: a check failed; see its verdicts")
    return document


def title(subject: Document) -> str:
    """The first cell."""
    return bold(subject["title"], ours=subject["role"] == "target")


def steady(name: str, kind: str) -> Column:
    """A kind of memory, after all runs."""
    return name, lambda subject: mebibytes(find(subject, "memory", "stages", "steady", kind))


TITLE: Column = ("", title)
LOAD: Column = ("load", lambda subject: number(find(subject, "cold_start", "load"), "{:.2f} s"))
COLD: Column = ("cold start", lambda subject: number(find(subject, "cold_start", "total"), "{:.2f} s"))
ANONYMOUS = steady("anonymous memory", "anonymous")
TOTAL: Column = ("two processes, PSS", lambda subject: mebibytes(find(subject, "memory", "total_proportional")))
WEIGHTS: Column = ("weights", lambda subject: mebibytes(subject["weights_bytes"]))
DRIFT: Column = (
    "drift",
    lambda subject: "" if subject["name"] == DENSE else error(find(subject, "drift", "tokens", "relative_l2")),
)
"""From the plan in fp32, which dense PyTorch does not run."""
LOSS: Column = ("loss", lambda subject: error(find(subject, "loss", "tokens", "relative_l2")))
ERROR: Column = ("error", LOSS[1])
"""Of a dense bundle: there is no plan to lose by, so what is lost is the precision."""


def latencies(document: Document) -> Iterator[Column]:
    """A column for each length: seconds of dense PyTorch, and times these of the others."""
    for latency in document["subjects"][0]["latencies"]:
        tokens = latency["sequence"]

        def cell(subject: Document, tokens: int = tokens) -> str:
            found = next((one for one in subject["latencies"] if one["sequence"] == tokens), None)
            if subject["name"] == DENSE:
                return number(find(found, "median"), "{:.3f} s")
            return number(find(found, "ratios", DENSE, "median"), "{:.2f} x")

        yield f"{tokens} tokens", cell


def measured(document: Document, columns: Sequence[Column], *, planned: bool = False) -> str:
    """A table of a measurement; a dense bundle's PyTorch is there once."""
    subjects = [subject for subject in document["subjects"] if planned or subject["name"] != PLANNED]
    spreads = [latency["variation"] for subject in subjects for latency in subject["latencies"]]
    line = (
        f"{surroundings(document)}; {document['settings']['threads']} threads, medians of "
        f"{document['settings']['runs']} interleaved runs, ratios to {subjects[0]['title']} in the same rounds; "
        f"coefficient of variation {statistics.median(spreads):.1%} in the median, {max(spreads):.1%} at most."
    )
    return table(columns, subjects, line)


def run_table(work: Path) -> str:
    """Of run.py."""
    document = read_passed(work, "run")
    return measured(document, [TITLE, LOAD, ANONYMOUS, *latencies(document), TOTAL, ERROR])


def compiled_table(work: Path) -> str:
    """Of compiled.py: the measurement, and what exporting took."""
    document = read_passed(work, "compiled")
    records = read_records(work, "compiled-export")["records"]
    exports = {f"{record['target']}-{record['dtype']}": record for record in records}

    def column(heading: str, name: str, form: str, unit: float = 1) -> Column:
        def cell(subject: Document) -> str:
            export = exports.get(subject["name"]) or exports.get(f"{subject['name']}-{document['bundle']['dtype']}")
            return "" if export is None else number(export[name], form, unit)

        return heading, cell

    times, sizes = column("export", "wall_seconds", "{:.1f} s"), column("file", "target_bytes", "{:.2f} MB", 1e6)
    return measured(document, [TITLE, times, sizes, LOAD, ANONYMOUS, *latencies(document), ERROR])


def measure_table(work: Path) -> str:
    """Of measure.py."""
    document = read_passed(work, "measure")
    columns = [TITLE, WEIGHTS, ANONYMOUS, TOTAL, COLD, *latencies(document), DRIFT, LOSS]
    return measured(document, columns, planned=True)


# Records


def read_records(work: Path, name: str) -> Document:
    """What `write_records` wrote.

    Raises:
        SystemExit: it cannot be read.
    """
    try:
        document: Document = json.loads((work / f"{name}.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as problem:
        raise SystemExit(f"cannot read {work / f'{name}.json'}: {problem}") from problem
    return document


def export_table(work: Path) -> str:
    """Of export.py: medians over each exporter's runs."""
    document = read_records(work, "export-large")
    names = list(dict.fromkeys(record["subject"] for record in document["records"]))
    groups = [[record for record in document["records"] if record["subject"] == name] for name in names]
    fields = ("wall_seconds", "peak_rss_bytes", "peak_anonymous_bytes", "output_bytes", "weight_bytes")
    rows = [{"subject": group[0]["subject"], **_medians(group, fields)} for group in groups]
    columns: list[Column] = [
        ("exporter", lambda row: bold(row["subject"], ours=row["subject"].startswith(LABELS[OURS]))),
        ("wall", lambda row: number(row["wall_seconds"], "{:.1f} s")),
        ("ratio", lambda row: number(row["wall_seconds"], "{:.1f}", rows[0]["wall_seconds"])),
        ("peak RSS", lambda row: mebibytes(row["peak_rss_bytes"])),
        ("of which allocated", lambda row: mebibytes(row["peak_anonymous_bytes"])),
        ("bytes beyond the weights", lambda row: number(row["output_bytes"] - row["weight_bytes"], "{:.2f} MB", 1e6)),
    ]
    return table(columns, rows, f"{surroundings(document)}; medians of {len(groups[0])}.")


def _medians(group: Sequence[Document], fields: Sequence[str]) -> dict[str, float]:
    return {field: statistics.median(record[field] for record in group) for field in fields}


def engines_table(work: Path) -> str:
    """Of engines.py: the last build of each plan."""
    document = read_records(work, "engines")
    rows = list({record["subject"]: record for record in document["records"]}.values())

    def build(row: Document, name: str) -> float:
        size: float = row["export"]["targets"]["tensorrt-rtx"]["build"][name]
        return size

    def label(row: Document) -> str:
        sparsity = row["export"]["sparsity"]
        return f"{sparsity:.1%} sparsity, {row['reused']} re-used" if sparsity else row["subject"]

    columns: list[Column] = [
        ("", label),
        ("unique weights", lambda row: number(build(row, "weights_bytes"), "{:,.1f} MB", 1e6)),
        ("engine", lambda row: number(build(row, "engine_bytes"), "{:,.1f} MB", 1e6)),
        ("ratio", lambda row: number(build(row, "engine_bytes"), "{:.3f}", build(row, "weights_bytes"))),
        ("build", lambda row: number(row["export"]["reports"]["tensorrt-rtx"]["seconds"], "{:.1f} s")),
        ("whole export", lambda row: number(row["wall_seconds"], "{:.0f} s")),
        ("peak RSS", lambda row: mebibytes(row["peak_rss_bytes"])),
        ("of which allocated", lambda row: mebibytes(row["peak_anonymous_bytes"])),
    ]
    library = rows[-1]["export"]["targets"]["tensorrt-rtx"]["library"]
    return table(columns, rows, f"{surroundings(document)}; TensorRT-RTX {library}; built once.")


def overflow_table(work: Path) -> str:
    """Of overflow.py: a row for each way, a column for each encoder; ours under a plan comes last."""
    document = read_records(work, "overflow")
    found = {(one["plan"], one["subject"], one["case"]): one for one in document["records"]}
    cases = list(dict.fromkeys(case for _, _, case in found))
    ways = dict.fromkeys((plan, subject) for plan, subject, _ in found)
    shown = [way for way in ways if way[1] == RESCALED or (way[0] == "dense" and way[1] != REFERENCE)]
    half = {plan: subject for plan, subject in ways if subject in BF16}

    def relative(way: tuple[str, str], case: str) -> str:
        deviation, base = found[*way, case]["deviation"], found[way[0], half[way[0]], case]["deviation"]
        if deviation["nonfinite"] or deviation["relative_l2"] is None:
            return "NaN"
        value = deviation["relative_l2"]
        return f"{error(value)}, {value / base['relative_l2']:.2f} x"

    def beyond(way: tuple[str, str]) -> str:
        extra = found[*way, cases[0]]["weight_bytes"] - found[way[0], half[way[0]], cases[0]]["weight_bytes"]
        return f"{extra / 1e6:+.1f} MB" if extra else "none"

    def label(way: tuple[str, str]) -> str:
        return bold(way[1] if way[0] == "dense" else f"{way[1]}; {way[0]}", ours=way[1] == RESCALED)

    columns: list[Column] = [
        ("", lambda row: label(row["way"])),
        ("memory beyond half precision", lambda row: beyond(row["way"])),
        *((f"{case} would overflow", lambda row, case=case: relative(row["way"], case)) for case in cases),
    ]
    return table(columns, [{"way": way} for way in shown], f"{surroundings(document)}.")


def speed_table(work: Path) -> str:
    """Of search.py --part speed: the plain loops and ours, on each encoder."""
    document = read_records(work, "search-speed")
    pairs: dict[tuple[str, int], dict[str, Document]] = {}
    for record in document["records"]:
        pairs.setdefault((record["subject"], record["layers"]), {})[record["way"]] = record
    rows = [{"name": name, "layers": layers, **pair} for (name, layers), pair in pairs.items()]
    columns: list[Column] = [
        ("encoder", lambda row: f"{row['name']}, {row['layers']} layers"),
        ("dropped", lambda row: f"{len(row['ours']['order'])} of {2 * row['layers']}"),
        (
            "evaluations, times fewer",
            lambda row: number(row["naive"]["sub_blocks"], "{:.1f}", row["ours"]["sub_blocks"]),
        ),
        ("search, times faster", lambda row: number(row["naive"]["seconds"], "{:.1f}", row["ours"]["seconds"])),
        ("naive / ours", lambda row: f"{row['naive']['seconds']:.1f} / {row['ours']['seconds']:.1f} s"),
        (
            "allocated",
            lambda row: " / ".join(f"{row[way]['peak_anonymous_bytes'] / MIB:,.0f}" for way in WAYS) + " MiB",
        ),
    ]
    return table(columns, rows, f"{surroundings(document)}; {document['records'][0]['threads']} threads.")


def quality_table(work: Path) -> str:
    """Of search.py --part quality: D on the held-out prompts of each method, by what is dropped."""
    document = read_records(work, "search-quality")
    found = {(one["subject"], one["share_of_sub_blocks"]): one for one in document["records"]}
    shares = sorted({share for _, share in found})
    least = {share: min(min(one["reached"]) for (_, at), one in found.items() if at == share) for share in shares}
    middle = shares[len(shares) // 2]

    def cell(method: Document, share: float) -> str:
        one = found.get((method["subject"], share))
        if one is None:
            return "not measured"
        reached = statistics.mean(one["reached"])
        more = f" ({reached:.1%})" if reached > least[share] + NOTABLE else ""
        return f"{statistics.mean(one['held_out_discrepancy']):.3f}{more}"

    columns: list[Column] = [
        ("method", lambda row: bold(row["subject"], ours=row["subject"] == "skrr+")),
        *((f"{share:.0%}: {least[share]:.1%} of all", lambda row, share=share: cell(row, share)) for share in shares),
        (
            f"mean cosine at {middle:.0%}",
            lambda row: number(statistics.mean(found[row["subject"], middle]["held_out_cosine"]), "{:.3f}"),
        ),
    ]
    methods = [{"subject": name} for name in dict.fromkeys(name for name, _ in found)]
    methods.sort(key=lambda row: statistics.mean(found[row["subject"], middle]["held_out_discrepancy"]))
    return table(columns, methods, f"{surroundings(document)}.")


def skrr_table(work: Path) -> str:
    """Of skrr.py: scores of every method's images, by the best mean first; and how well D tells them."""
    document = read_records(work, "skrr")
    kinds: dict[str, list[Document]] = {}
    for record in document["records"]:
        kinds.setdefault(record["kind"], []).append(record)
    [dense], plans, ways = kinds["dense"], kinds["method"], kinds["correlation"]
    sparsities = list(dict.fromkeys(plan["sparsity"] for plan in plans))
    found = {(plan["subject"], plan["sparsity"]): plan for plan in plans}

    def each(row: Document, cell: Callable[[Document], str]) -> str:
        if row is dense:
            return ""
        return " / ".join(cell(found[row["subject"], sparsity]) for sparsity in sparsities)

    def mean_score(name: str) -> float:
        return statistics.mean(found[name, sparsity]["score"]["value"] for sparsity in sparsities)

    names = sorted(dict.fromkeys(name for name, _ in found), key=mean_score, reverse=True)
    rows = [dense, *({"subject": name} for name in names)]
    columns: list[Column] = [
        ("method", lambda row: bold(row["subject"], ours=row["subject"] == "skrr+")),
        ("parameters gone", lambda row: each(row, lambda plan: number(plan["reached"], "{:.1%}"))),
        *(
            (
                f"score at {sparsity:.0%}",
                lambda row, at=sparsity: _estimate((row if row is dense else found[row["subject"], at])["score"]),
            )
            for sparsity in sparsities
        ),
        ("image distance", lambda row: each(row, lambda plan: number(plan["distance"]["value"], "{:.3f}"))),
        ("D", lambda row: each(row, lambda plan: number(plan["discrepancies"][ways[0]["subject"]], "{:.2g}"))),
    ]
    apart = max(max(plan["by_draw"]) - min(plan["by_draw"]) for plan in (dense, *plans))
    tasks = f"{dense['tasks']} tasks in {len(dense['by_draw'])} draws, whose scores are {apart:.2f} apart at most"
    return f"{table(columns, rows, '')}{_correlations(ways, tasks, document)}"


def _correlations(records: Sequence[Document], tasks: str, document: Document) -> str:
    """How well each way to take D ranks plans as their images do."""

    def beyond(row: Document) -> str:
        return "" if row is records[0] else _estimate(row["beyond_paper"], "{:+.2f}")

    columns: list[Column] = [
        ("D, taken", lambda row: row["subject"]),
        ("rank correlation with the score", lambda row: _estimate(row["score"])),
        ("stronger than the first", beyond),
        ("at one sparsity", lambda row: number(row["score_within_sparsity"])),
        ("with the image distance", lambda row: _estimate(row["distance"])),
    ]
    return table(columns, records, f"{records[0]['plans']} plans; {tasks}. {surroundings(document)}.")


def _estimate(value: Document, form: str = "{:.2f}") -> str:
    """A number and its interval."""
    shown, low, high = (form.format(value[name]) for name in ("value", "low", "high"))
    return f"{shown} ({low} to {high})"


def cpp_table(work: Path) -> str:
    """Of serve.py --part cpp: the C++ runtime beside the Python session."""
    document = read_passed(work, "serve-cpp")
    native, python, bench = read_records(work, "serve-cpp-start")["records"]
    subjects = {subject["name"]: subject for subject in document["subjects"]}
    held = (bench["bench"]["anonymous_bytes"], find(subjects["onnx"], "memory", "stages", "steady", "anonymous"))
    rows = [
        {"title": bold("C++, `skrr-encode`", ours=True), "start": native, "steady": held[0], "name": "cpp"},
        {"title": "Python, `open_session`", "start": python, "steady": held[1], "name": "onnx"},
    ]
    columns: list[Column] = [
        ("", lambda row: row["title"]),
        ("start to first embedding", lambda row: number(row["start"]["wall_seconds"], "{:.2f} s")),
        ("anonymous memory, after runs", lambda row: mebibytes(row["steady"])),
        *(
            (f"{length['sequence']} tokens", lambda row, place=place: _beside_python(subjects, row["name"], place))
            for place, length in enumerate(subjects["onnx"]["latencies"])
        ),
        ("drift", lambda row: error(find(subjects[row["name"]], "drift", "tokens", "relative_l2"))),
    ]
    runs = document["settings"]["runs"]
    return table(columns, rows, f"{surroundings(document)}; medians of {runs}, interleaved.")


def _beside_python(subjects: Document, name: str, place: int) -> str:
    median, base = (subjects[one]["latencies"][place]["median"] for one in (name, "onnx"))
    return number(base, "{:.3f} s") if name == "onnx" else number(median / base, "{:.2f} x")


def triton_table(work: Path) -> str:
    """Of serve.py --part triton: what clients get, and what instances hold."""
    document = read_records(work, "serve-triton")
    loads = [record for record in document["records"] if "clients" in record]
    held = [record for record in document["records"] if "instances" in record]
    columns: list[Column] = [
        ("clients", lambda row: str(row["clients"])),
        ("requests/s", lambda row: number(row["rate"])),
        *((name, lambda row, name=name: number(row[name], "{:.0f} ms", 1e-3)) for name in ("p50", "p95", "p99")),
        ("answered", lambda row: f"{row['requests']:,}"),
        ("errors", lambda row: str(len(row["errors"]))),
        (
            "RSS, last quarter to first",
            lambda row: number(row["resident"]["last"] / row["resident"]["first"] - 1, "{:+.1%}"),
        ),
    ]
    shared = " and ".join(
        f"{mebibytes(one['proportional'])} with {one['instances']} (of which anonymous {mebibytes(one['anonymous'])})"
        for one in held
    )
    seconds = loads[0]["seconds"]
    line = f"{surroundings(document)}; {seconds:.0f} s each. PSS of all its models' processes: {shared} instances."
    return table(columns, loads, line)


def savings_table(work: Path) -> str:
    """Of savings.py: every preset, what it feeds and reads, and what that and a plan leave of the encoder."""
    document = read_records(work, "savings")
    records = document["records"]

    def smaller(row: Document, name: str) -> str:
        return number(row[name], "{:.2f} GB", 1e9) if row[name] < row["dense"] else "the same"

    columns: list[Column] = [
        ("`--pipeline`", lambda row: f"`{row['pipeline']}`" + (f" {row['slot']}" if row["slot"] != SLOT else "")),
        ("encoder", lambda row: row["encoder"]),
        ("tokens", lambda row: f"{row['tokens']}{'' if row['padding'] == 'max_length' else ' at most'}"),
        ("sees the mask", lambda row: "yes" if row["masked"] else "no"),
        ("the pipeline takes", lambda row: ", ".join(f"`{name}`" for name in row["reads"])),
        ("whole", lambda row: number(row["dense"], "{:.2f} GB", 1e9)),
        ("what is read", lambda row: smaller(row, "read")),
        (f"{records[0]['sparsity']:.0%} plan", lambda row: number(row["planned"], "{:.2f} GB", 1e9)),
    ]
    return table(
        columns, records, "bf16, from the published dimensions; vision towers and language heads do not count."
    )


def families_table(work: Path) -> str:
    """Of families.py: drift from transformers by family and precision."""
    document = read_records(work, "families")
    records = document["records"]
    columns: list[Column] = [
        ("family", lambda row: f"`{row['family']}`"),
        ("fp32, ONNX Runtime", lambda row: error(row["onnx"])),
        ("fp32, torch.export", lambda row: error(row["pt2"])),
        *(
            (f"{name}, {title}", lambda row, name=name, who=who: error(row[name][who]))
            for name in ("bf16", "fp16")
            for who, title in (("pytorch", "PyTorch"), ("ours", "ours"))
        ),
    ]
    size = f"{records[0]['layers']} layers, hidden size {records[0]['width']}"
    return table(columns, records, f"{size}, random weights; {surroundings(document)}.")


TABLES: dict[str, Callable[[Path], str]] = {
    "savings": savings_table,
    "families": families_table,
    "export": export_table,
    "run": run_table,
    "compiled": compiled_table,
    "engines": engines_table,
    "overflow": overflow_table,
    "measure": measure_table,
    "serve-cpp": cpp_table,
    "serve-triton": triton_table,
    "search-speed": speed_table,
    "search-quality": quality_table,
    "skrr": skrr_table,
}


def replaced(text: str, name: str, content: str) -> str:
    """The text with other content between the markers of a table.

    Raises:
        SystemExit: it does not have each marker once, in order.
    """
    begin, end = f"<!-- {name} -->\n", f"<!-- /{name} -->"
    before, found, rest = text.partition(begin)
    _, closed, after = rest.partition(end)
    if not found or not closed or begin in after or end in before + after:
        raise SystemExit(f"the README must have '{begin.strip()}' and after it '{end}', each once")
    return f"{before}{begin}{content}\n{end}{after}"


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 if it is not up to date")
    parser.add_argument("--readme", type=Path, default=REPOSITORY / "README.md", metavar="FILE")
    parser.add_argument("--table", action="append", choices=TABLES, help="write this one; default: all")
    add_work_argument(parser)
    arguments = parser.parse_args()
    try:
        old = new = arguments.readme.read_text(encoding="utf-8")
        for name in arguments.table or TABLES:
            new = replaced(new, name, TABLES[name](arguments.work))
        if arguments.check and new != old:
            raise SystemExit(f"{arguments.readme} is not up to date: run benchmarks/readme.py")
        if new != old:
            write_file(arguments.readme, new.encode())
    except (SkrrError, OSError) as problem:
        raise SystemExit(str(problem)) from problem


if __name__ == "__main__":
    main()
