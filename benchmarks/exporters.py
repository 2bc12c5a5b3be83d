"""The exporters that are compared: ours and the peers, each a command that turns a checkpoint into ONNX.

And the options which the benchmarks that compare them share.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

from environments import PEERS_DIRECTORY, peer_python, versions
from process import Result, run_measured
from report import add_work_argument

from skrr_export.plan import Plan

REPOSITORY = Path(__file__).resolve().parent.parent
OURS = "skrr_export"
PEERS = ("optimum_onnx", "mobius_onnx", "torch_onnx")
LABELS = {
    OURS: "skrr-export",
    "optimum_onnx": "optimum-onnx",
    "mobius_onnx": "mobius-onnx",
    "torch_onnx": "torch.onnx.export",
}
"""How tables call them."""


@dataclass(frozen=True, slots=True)
class Exporter:
    """One way to export."""

    name: str
    """A key of `LABELS`."""
    python: Path
    """Its interpreter."""

    def command(self, checkpoint: Path, output: Path, *options: str) -> list[str]:
        """The command that exports; `options` are passed to ours and must be empty for a peer."""
        if self.name == OURS:
            arguments = ["export", str(checkpoint), "-o", str(output), "--force", *options]
            return [str(self.python), "-m", "skrr_export", *arguments]
        assert not options
        return [str(self.python), str(PEERS_DIRECTORY / f"{self.name}.py"), str(checkpoint), str(output)]

    def versions(self) -> dict[str, str]:
        """Versions of the packages it runs on."""
        return versions(self.python)

    def title(self) -> str:
        """What tables call it, and its version; for torch's own exporter torch's."""
        found = self.versions()
        return f"{LABELS[self.name]} {found.get(LABELS[self.name], found['torch'])}"


def exporter(name: str) -> Exporter:
    """An exporter, ready to run; a peer's environment is made first if need be."""
    return Exporter(name, Path(sys.executable) if name == OURS else peer_python(name))


def export_bundle(checkpoint: Path, bundle: Path, *options: str, plan: Plan | None = None) -> Result:
    """Export with ours in a fresh process, which prints JSON; the plan is kept beside the bundle.

    Raises:
        CommandError: the exporter failed.
    """
    bundle.parent.mkdir(parents=True, exist_ok=True)
    if plan is not None:
        file = bundle.with_suffix(".plan.json")
        file.write_text(plan.to_json(), encoding="utf-8")
        options = ("--plan", str(file), *options)
    return run_measured(exporter(OURS).command(checkpoint, bundle, "--json", *options))


def ensure_export(peer: str, checkpoint: Path, output: Path) -> Path:
    """The directory with a peer's export of a checkpoint, made anew when its script or pins have changed.

    What made it is written last, beside the directory.

    Raises:
        CommandError: the exporter failed.
    """
    made_by = output.with_name(f"{peer}-made-by.txt")
    sources = (PEERS_DIRECTORY / f"{peer}.py", PEERS_DIRECTORY / f"requirements-{peer}.txt")
    wanted = "".join(path.read_text(encoding="utf-8") for path in sources)
    if not made_by.is_file() or made_by.read_text(encoding="utf-8") != wanted:
        made_by.unlink(missing_ok=True)
        shutil.rmtree(output, ignore_errors=True)
        output.parent.mkdir(parents=True, exist_ok=True)
        run_measured(exporter(peer).command(checkpoint, output), cwd=REPOSITORY)
        made_by.write_text(wanted, encoding="utf-8")
    return output


def positive(text: str) -> int:
    """A whole number above 0, for argparse."""
    number = int(text)
    if number < 1:
        raise ValueError
    return number


def add_common_arguments(parser: argparse.ArgumentParser) -> None:
    """Add `--subjects` (a list of names of exporters) and `--work`."""
    parser.add_argument(
        "--subjects",
        type=_names,
        default=[OURS, *PEERS],
        metavar="NAMES",
        help=f"exporters to compare, separated by commas, of {', '.join((OURS, *PEERS))} (default: all)",
    )
    add_work_argument(parser)


def _names(text: str) -> list[str]:
    names = text.split(",")
    if unknown := sorted(set(names) - set(LABELS)):
        raise argparse.ArgumentTypeError(f"no such exporter: {', '.join(unknown)}")
    return names
