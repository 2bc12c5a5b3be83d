"""Latency and memory on an NVIDIA GPU: PyTorch, torch.compile and ours, beside what the GPU itself could reach.

    python benchmarks/gpu.py [--batch 1,8] [--sequence 512] [--runs N] [--work DIR] [--json FILE]
    python benchmarks/gpu.py --device cpu --layers 2 --width 64 --sequence 16 --batch 1      to try it without a GPU

A T5-XXL encoder of random bf16 weights, dense and with FLUX.1-dev's order dropped to 41.9%, fed as FLUX.1 feeds it: all
tokens, no mask. It needs the package, torch and transformers; onnxruntime-gpu and nvidia-ml-py if they are there; a C++
compiler; and 40 GB of disk. Each subject is a fresh process, so its memory is its own; ids are on the device before the
clock starts. The limits are measured by the same run. Ours are compared with PyTorch's output: the command fails if one
cannot run or is something else.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from checkpoints import BYTES_PER_ELEMENT, SHAPES, Shape, ensure_checkpoint, resized, unit_parameters
from engines import ORDER, published_plan
from environments import versions
from exporters import positive
from process import MIB, CommandError, run_measured
from report import add_work_arguments, machine_line, print_table, write_records
from run import relative_error, spread

from skrr_export.plan import Plan

SPARSITY = 0.419
LABELS = {
    "eager": "PyTorch eager",
    "compile": "torch.compile",
    "aoti": "ours: AOTInductor",
    "pt2": "ours: torch.export program",
    "onnx": "ours: ONNX Runtime CUDA",
}
REQUIRED = ("eager", "aoti", "pt2")
"""Subjects whose absence is a failure; the others depend on what is installed."""
MAX_ERROR = 0.1
"""Largest relative L2 from PyTorch with which a subject counts as running the same encoder: both compute in bf16, which
has 8 bits, through 48 sub-blocks. A wrong operator is far above."""
COLUMNS = (
    "plan", "subject", "batch", "load s", "first call s", "median ms", "p95 ms", "CV", "GPU ms", "to eager",
    "to the limit", "torch peak MiB", "process MiB", "GPU in use MiB", "relative error",
)  # fmt: skip
LIMIT_COLUMNS = ("plan", "batch", "weights bytes", "read ms", "TFLOP", "compute ms", "limit ms")
WARM_UP = 5

Call = Callable[[], Any]


@dataclass(frozen=True, slots=True)
class Job:
    """What a worker process is asked to do; as JSON on its command line."""

    subject: str
    """A key of `LABELS`, or `limits`."""
    device: str
    checkpoint: str
    bundle: str
    plan: str
    """Plan file."""
    batches: list[int]
    sequence: int
    vocab: int
    runs: int
    output: str
    """Where `last_hidden_state` goes, for the first batch."""


@dataclass(slots=True)
class Row:
    """One subject under one plan, and what was measured of it."""

    plan: str
    subject: str
    found: dict[str, Any] = field(default_factory=dict)
    """What its worker answered."""
    absent: str | None = None
    """Why it could not run."""
    error: float | None = None
    """Relative L2 from PyTorch under the same plan."""


# The worker


def open_model(job: Job) -> Callable[[Any], Call]:
    """A transformers model under the plan, compiled for each size if it is to be."""
    import torch
    from transformers import T5EncoderModel

    from skrr_export.measure.reference import apply_plan

    model = T5EncoderModel.from_pretrained(job.checkpoint, dtype=torch.bfloat16).eval()
    plan = Plan.load(job.plan)
    if not plan.is_identity:
        apply_plan(model, plan)  # sub-blocks that do not run are dropped, before they reach the device
    model.to(job.device)
    run = torch.compile(model, dynamic=False) if job.subject == "compile" else model
    return lambda ids: lambda: run(input_ids=ids).last_hidden_state


def open_ours(job: Job) -> Callable[[Any], Call]:
    """A bundle. Its session's own call, without the copies of ids and results that `encode` makes."""
    import skrr_export

    session: Any = skrr_export.open_session(job.bundle, target=job.subject, device=job.device)
    if job.subject == "pt2":
        return lambda ids: lambda: session._module(session._weights, ids)["last_hidden_state"]
    return lambda ids: lambda: session._model(ids)["last_hidden_state"]


def open_onnx(job: Job) -> Callable[[Any], Call]:
    """A bundle as ONNX Runtime's CUDA provider runs it, with ids and results on the GPU."""
    if job.device != "cuda":
        raise SystemExit("the CUDA provider needs a GPU, and the device is a CPU")
    import onnxruntime

    import skrr_export

    session: Any = skrr_export.open_session(job.bundle, device="cuda")._session  # says why where there is no provider

    def prepare(ids: Any) -> Call:
        binding = session.io_binding()
        binding.bind_ortvalue_input("input_ids", onnxruntime.OrtValue.ortvalue_from_numpy(ids.cpu().numpy(), "cuda", 0))
        binding.bind_output("last_hidden_state", "cuda")

        def call() -> Any:
            session.run_with_iobinding(binding)
            return binding.get_outputs()[0]

        return call

    return prepare


def measure_subject(job: Job) -> dict[str, Any]:
    """Load it, and for each batch run it until it is warm, then time it."""
    import torch

    openers = {"eager": open_model, "compile": open_model, "onnx": open_onnx}
    start = time.perf_counter()
    with torch.inference_mode():
        prepare = openers.get(job.subject, open_ours)(job)
        synchronise(job.device)
        found: dict[str, Any] = {"load_seconds": time.perf_counter() - start, "batches": {}}
        random = np.random.default_rng(0)
        for batch in job.batches:
            ids = random.integers(2, job.vocab, (batch, job.sequence), dtype=np.int64)
            call = prepare(torch.from_numpy(ids).to(job.device))
            start = time.perf_counter()
            result = call()
            synchronise(job.device)
            first = time.perf_counter() - start
            if batch == job.batches[0]:
                values = result.float().cpu() if isinstance(result, torch.Tensor) else result
                np.save(job.output, np.asarray(values.numpy(), np.float32))
            del result
            if job.device == "cuda":
                torch.cuda.reset_peak_memory_stats()
            for _ in range(WARM_UP):
                call()
            wall, events = timed(call, job.runs, job.device)
            if job.subject == "onnx":
                events = []  # it runs on a stream of its own, of which torch's events know nothing
            measured = {"first_call_seconds": first, "seconds": wall, "event_seconds": events}
            found["batches"][str(batch)] = measured | memory(job)
    return found


def timed(call: Call, runs: int, device: str) -> tuple[list[float], list[float]]:
    """Seconds of every run: by the clock, between two synchronisations; and by the GPU's own events, if it is one."""
    import torch

    wall, events = [], []
    for _ in range(runs):
        marks = [torch.cuda.Event(enable_timing=True) for _ in range(2)] if device == "cuda" else []
        synchronise(device)
        start = time.perf_counter()
        if marks:
            marks[0].record()
        call()
        if marks:
            marks[1].record()
        synchronise(device)
        wall.append(time.perf_counter() - start)
        if marks:
            events.append(marks[0].elapsed_time(marks[1]) / 1e3)
    return wall, events


def synchronise(device: str) -> None:
    """Wait for the GPU, if it is one."""
    import torch

    if device == "cuda":
        torch.cuda.synchronize()


def memory(job: Job) -> dict[str, int | str | None]:
    """GPU memory so far, in bytes; what could not be measured is `None`, and `nvml` says why."""
    import torch

    if job.device != "cuda":
        return {"torch_peak_bytes": None, "process_bytes": None, "gpu_used_bytes": None, "nvml": "the device is a CPU"}
    free, total = torch.cuda.mem_get_info()
    peak = None if job.subject == "onnx" else torch.cuda.max_memory_allocated()
    process, why = process_memory()
    return {"torch_peak_bytes": peak, "process_bytes": process, "gpu_used_bytes": total - free, "nvml": why}


def process_memory() -> tuple[int | None, str | None]:
    """What NVML says this process has of the GPU, context and libraries included; or `None`, and why."""
    import os

    import torch

    try:
        import pynvml
    except ImportError:
        return None, "pip install nvidia-ml-py"
    try:
        pynvml.nvmlInit()
        handle = pynvml.nvmlDeviceGetHandleByUUID(f"GPU-{torch.cuda.get_device_properties(0).uuid}")
        processes = pynvml.nvmlDeviceGetComputeRunningProcesses(handle)
    except pynvml.NVMLError as error:
        return None, str(error)
    sizes = [process.usedGpuMemory for process in processes if process.pid == os.getpid()]
    if not sizes or sizes[0] is None:
        return None, "NVML does not list this process; in a container it may know another number for it"
    return int(sizes[0]), None


def measure_limits(job: Job) -> dict[str, Any]:
    """What the device reaches: bytes read and written a second by a large copy, and FLOP/s of a large bf16 product."""
    import torch

    on_gpu = job.device == "cuda"
    source = torch.ones(2**30 if on_gpu else 2**26, dtype=torch.uint8, device=job.device)
    target = torch.empty_like(source)
    size = 8192 if on_gpu else 512
    left, right = (torch.randn(size, size, device=job.device).to(torch.bfloat16) for _ in range(2))
    product = torch.empty_like(left)
    best = []
    for call in (lambda: target.copy_(source), lambda: torch.matmul(left, right, out=product)):
        timed(call, WARM_UP, job.device)
        wall, events = timed(call, max(job.runs, 20), job.device)
        best.append(min(events or wall))
    facts: dict[str, Any] = {"device": machine_line()}
    if on_gpu:
        properties = torch.cuda.get_device_properties(0)
        name = f"{properties.name}, {properties.total_memory / 2**30:.0f} GiB"
        capability = f"compute capability {properties.major}.{properties.minor}"
        facts = {"device": f"{name}, {capability}, CUDA {torch.version.cuda}"}
    return facts | {"bytes_per_second": 2 * source.nbytes / best[0], "flop_per_second": 2 * size**3 / best[1]}


# The parent, which leaves the GPU alone


def run_worker(job: Job) -> dict[str, Any]:
    """Do a job in a fresh process.

    Raises:
        CommandError: it failed.
    """
    result = run_measured([sys.executable, str(Path(__file__).resolve()), "worker", json.dumps(asdict(job))])
    answer: dict[str, Any] = json.loads(result.stdout.strip().splitlines()[-1])
    return answer


def flop_of(shape: Shape, plan: Plan, batch: int, sequence: int) -> int:
    """Floating-point operations of the products; re-used sub-blocks run, and count, at each position."""
    inner, total = shape.heads * shape.d_kv, 0
    for position in plan.positions():
        if position.source is None:
            continue
        if position.kind == "attention":
            total += 2 * batch * sequence * (4 * shape.width * inner + 2 * sequence * inner)
        else:
            total += 2 * batch * sequence * 3 * shape.width * shape.d_ff
    return total


def read_bytes(shape: Shape, plan: Plan) -> int:
    """Bytes of the weights that must be read at least: each once. Of the embedding only a few rows are."""
    kept = (position.unit for position in plan.positions() if position.action == "keep")
    return BYTES_PER_ELEMENT[shape.dtype] * sum(unit_parameters(shape, unit) for unit in kept)


def export(checkpoint: Path, plan: Path, bundle: Path, targets: set[str]) -> None:
    """Export to all targets, as FLUX.1 calls the encoder: without a mask."""
    words = ("export", checkpoint, "-o", bundle, "--plan", plan, "--dtype", "bf16", "--pipeline", "flux.1", "--force")
    run_measured([sys.executable, "-m", "skrr_export", *map(str, words), "--to", ",".join(sorted(targets))])


def measure(name: str, job: Job, subjects: list[str], directory: Path) -> list[Row]:
    """Every subject under one plan."""
    rows, reference = [], directory / "eager.npy"
    reference.unlink(missing_ok=True)
    for subject in subjects:
        row = Row(name, subject)
        output = directory / f"{subject}.npy"
        try:
            row.found = run_worker(Job(**{**asdict(job), "subject": subject, "output": str(output)}))
            row.error = relative_error(reference, output) if reference.exists() else None
        except CommandError as error:
            row.absent = str(error).strip().splitlines()[-1]
        print(f"{name}, {LABELS[subject]}: {row.absent or 'measured'}", file=sys.stderr, flush=True)
        rows.append(row)
    return rows


def mebibytes(size: int | None) -> str:
    """A size for the table."""
    return "not measured" if size is None else f"{size / MIB:,.0f}"


def table_row(row: Row, batch: int, eager: Row | None, limit: float) -> list[str]:
    """A line of the table."""
    start = [row.plan, LABELS[row.subject], str(batch)]
    if row.absent is not None:
        return [*start, *["-"] * (len(COLUMNS) - len(start))]
    found = row.found["batches"][str(batch)]
    seconds, events = found["seconds"], found["event_seconds"]
    median = statistics.median(seconds)
    base = None if eager is None else statistics.median(eager.found["batches"][str(batch)]["seconds"])
    return [
        *start,
        f"{row.found['load_seconds']:.1f}",
        f"{found['first_call_seconds']:.2f}",
        f"{median * 1e3:.2f}",
        f"{np.quantile(seconds, 0.95) * 1e3:.2f}",
        f"{spread(seconds):.1%}",
        f"{statistics.median(events) * 1e3:.2f}" if events else "-",
        f"{median / base:.2f}" if base else "-",
        f"{median / limit:.2f}",
        *(mebibytes(found[key]) for key in ("torch_peak_bytes", "process_bytes", "gpu_used_bytes")),
        "-" if row is eager or row.error is None else f"{row.error:.1e}",
    ]


def print_results(
    shape: Shape, plans: dict[str, Plan], rows: list[Row], limits: dict[str, Any], arguments: argparse.Namespace
) -> None:
    """Print the limits and the table."""
    lines, by_limit = [], []
    for name, plan in plans.items():
        for batch in arguments.batch:
            nbytes, flop = read_bytes(shape, plan), flop_of(shape, plan, batch, arguments.sequence)
            times = nbytes / limits["bytes_per_second"], flop / limits["flop_per_second"]
            cells = [f"{nbytes:,}", f"{times[0] * 1e3:.2f}", f"{flop / 1e12:.3f}", f"{times[1] * 1e3:.2f}"]
            by_limit.append([name, str(batch), *cells, f"{max(times) * 1e3:.2f}"])
            measured = [row for row in rows if row.plan == name]
            eager = next((row for row in measured if row.subject == "eager" and row.found), None)
            lines += [table_row(row, batch, eager, max(times)) for row in measured]
    title = f"T5, {shape.layers} layers x {shape.width}, bf16, {arguments.sequence} tokens, on {limits['device']}"
    print_table(
        f"Limits: {title}", LIMIT_COLUMNS, by_limit,
        f"Measured in this run: {limits['bytes_per_second'] / 1e9:,.0f} GB/s by a copy, bytes read and bytes written; "
        f"{limits['flop_per_second'] / 1e12:,.1f} TFLOP/s by a bf16 product.\n"
        "Weights bytes: each weight once, the embedding left out. The limit is the longer of the two times.",
    )  # fmt: skip
    print_table(
        title, COLUMNS, lines,
        f"Runs: {arguments.runs}, one after the other, after {WARM_UP} to warm up; the host's clock between two "
        "synchronisations. GPU ms: by CUDA events.\n"
        "Torch peak: its allocator's, first calls left out. Process: by NVML, context and libraries included. GPU in "
        "use: by all processes.\n"
        f"The error is relative L2 from PyTorch eager under the same plan, at batch {arguments.batch[0]}.",
    )  # fmt: skip
    for row in rows:
        if row.absent is not None:
            print(f"{row.plan}, {LABELS[row.subject]}: not measured: {row.absent}")
    reasons = {found["nvml"] for row in rows if row.found for found in row.found["batches"].values()}
    for why in sorted(filter(None, reasons)):
        print(f"memory by NVML: not measured: {why}")


def not_as_claimed(rows: list[Row]) -> list[str]:
    """Subjects that cannot run, or run something else."""
    wrong = []
    for row in rows:
        if row.absent is not None and row.subject in REQUIRED:
            wrong.append(f"{row.plan}, {LABELS[row.subject]}: {row.absent}")
        if row.error is not None and not row.error <= MAX_ERROR:
            wrong.append(f"{row.plan}, {LABELS[row.subject]}: off by {row.error:.1e} from PyTorch")
    return wrong


def parse_arguments() -> argparse.Namespace:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--layers", type=positive, help="to try it on something smaller")
    parser.add_argument("--width", type=positive, help="likewise; a multiple of 64")
    parser.add_argument("--sequence", type=positive, default=512, help="tokens (default: 512)")
    parser.add_argument(
        "--batch", type=lambda text: [positive(word) for word in text.split(",")], default=[1, 8], metavar="N,..."
    )
    parser.add_argument("--runs", type=positive, default=30, help="timed runs of each (default: 30)")
    parser.add_argument(
        "--subjects", type=lambda text: text.split(","), default=list(LABELS), help=f"of {', '.join(LABELS)}"
    )
    plans = ["dense", "planned"]
    parser.add_argument("--plans", type=lambda text: text.split(","), default=plans, help=f"of {', '.join(plans)}")
    add_work_arguments(parser)
    arguments = parser.parse_args()
    if not set(arguments.subjects) <= set(LABELS) or not set(arguments.plans) <= set(plans):
        parser.error("no such subject or plan")
    arguments.subjects.sort(key=list(LABELS).index)  # eager first: the others are compared with it
    return arguments


def main() -> None:
    """Command line."""
    arguments = parse_arguments()
    shape, work = resized(SHAPES["xxl"], layers=arguments.layers, width=arguments.width), arguments.work
    every = {"dense": Plan.identity("t5", shape.layers), "planned": published_plan(shape, SPARSITY)}
    plans = {name: every[name] for name in arguments.plans}
    directory = work / "gpu"
    rows: list[Row] = []
    try:
        folder = "xxl" if shape == SHAPES["xxl"] else f"xxl-{shape.layers}x{shape.width}"
        checkpoint = ensure_checkpoint(work / "checkpoints" / folder, shape)
        limits: dict[str, Any] = {}
        for name, plan in plans.items():
            outputs, bundle, file = directory / name, directory / f"{name}.bundle", directory / f"{name}.json"
            outputs.mkdir(parents=True, exist_ok=True)
            file.write_text(plan.to_json(), encoding="utf-8")
            job = Job(
                "limits", arguments.device, str(checkpoint), str(bundle), str(file), arguments.batch,
                arguments.sequence, shape.vocab, arguments.runs, "",
            )  # fmt: skip
            limits = limits or run_worker(job)
            if targets := {"onnx", "pt2", "aoti"} & set(arguments.subjects):
                export(checkpoint, file, bundle, targets)
            rows += measure(name, job, arguments.subjects, outputs)
    except CommandError as error:
        raise SystemExit(str(error)) from error
    print_results(shape, plans, rows, limits, arguments)
    common = {"benchmark": "gpu", "shape": asdict(shape), "order": ORDER, "sequence": arguments.sequence}
    common |= {"limits": limits, "versions": versions(Path(sys.executable))}
    write_records(arguments.json or work / "gpu.json", "gpu", [{**common, **asdict(row)} for row in rows])
    if wrong := not_as_claimed(rows):
        raise SystemExit("not as claimed:\n" + "\n".join(wrong))


def main_worker() -> None:
    """One job; the answer is the last line of standard output."""
    job = Job(**json.loads(sys.argv[2]))
    print(json.dumps(measure_limits(job) if job.subject == "limits" else measure_subject(job)))


if __name__ == "__main__":
    main_worker() if sys.argv[1:2] == ["worker"] else main()
