"""The exporters that are compared: ours and the peers, each a command that turns a checkpoint into ONNX.

And the options which the benchmarks that compare them share.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

from environments import PEERS_DIRECTORY, cache_directory, peer_python, versions
from process import run_measured

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


def exporter(name: str) -> Exporter:
    """An exporter, ready to run; a peer's environment is made first if need be."""
    return Exporter(name, Path(sys.executable) if name == OURS else peer_python(name))


def ensure_export(name: str, checkpoint: Path, output: Path) -> Path:
    """The directory with the export of a checkpoint. Ours is always made anew; a peer's is kept.

    A peer's is made anew when its script or pins have changed. What made it is written last, beside the directory.

    Raises:
        CommandError: the exporter failed.
    """
    made_by = output.with_name(f"{name}-made-by.txt")
    wanted = "" if name == OURS else "".join(path.read_text(encoding="utf-8") for path in _sources(name))
    if not wanted or not made_by.is_file() or made_by.read_text(encoding="utf-8") != wanted:
        made_by.unlink(missing_ok=True)
        shutil.rmtree(output, ignore_errors=True)
        output.parent.mkdir(parents=True, exist_ok=True)
        run_measured(exporter(name).command(checkpoint, output), cwd=REPOSITORY)
        made_by.write_text(wanted, encoding="utf-8")
    return output


def _sources(peer: str) -> tuple[Path, Path]:
    return PEERS_DIRECTORY / f"{peer}.py", PEERS_DIRECTORY / f"requirements-{peer}.txt"


def positive(text: str) -> int:
    """A whole number above 0, for argparse."""
    number = int(text)
    if number < 1:
        raise ValueError
    return number


def add_common_arguments(parser: argparse.ArgumentParser) -> None:
    """Add `--subjects` (a list of names of exporters), `--work` and `--json`."""
    parser.add_argument(
        "--subjects",
        type=_names,
        default=[OURS, *PEERS],
        metavar="NAMES",
        help=f"exporters to compare, separated by commas, of {', '.join((OURS, *PEERS))} (default: all)",
    )
    work = cache_directory() / "work"
    parser.add_argument(
        "--work", type=_absolute, default=work, metavar="DIR", help="for checkpoints and outputs (default: %(default)s)"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="for the records of all runs (default: in DIR)")


def _names(text: str) -> list[str]:
    names = text.split(",")
    if unknown := sorted(set(names) - set(LABELS)):
        raise argparse.ArgumentTypeError(f"no such exporter: {', '.join(unknown)}")
    return names


def _absolute(text: str) -> Path:
    return Path(text).resolve()
