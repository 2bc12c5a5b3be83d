"""Measurements as `measure` makes them, of encoders that nobody has to run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from skrr_export.measure.agreement import BOUNDS
from skrr_export.measure.fidelity import Deviation
from skrr_export.measure.latency import percentile_95, ratio, variation
from skrr_export.measure.limits import QUANTILES
from skrr_export.measure.record import (
    Agreement,
    Bound,
    BundleFacts,
    ColdStart,
    GpuMemory,
    Hardware,
    Invariance,
    Latency,
    Measurement,
    Memory,
    ProcessMemory,
    PromptDeviation,
    Settings,
    SubjectRecord,
    Verdict,
)
from skrr_export.plan import Plan

MIB = 1 << 20
SIZES = ((1, 77), (1, 512))
PROMPTS = (
    "a red cube on top of a blue sphere, studio light",
    "An oil painting of a lighthouse in a storm, waves breaking over the rocks, a single lit window, gulls circling "
    "above, heavy impasto, muted greens and greys, signed in the lower right corner",
    "",
    "两只猫在窗台上晒太阳",
    "a photograph of a street in Lisbon after rain",
    "isometric pixel art of a greenhouse",
    'a sign that says "<b>OPEN</b>"',
)


def deviation(error: float, tokens: int = 1800) -> Deviation:
    """A deviation of about a relative L2."""
    quantiles = {str(q): error * factor for q, factor in zip(QUANTILES, (0.1, 0.3, 0.7, 2.0), strict=True)}
    lack = error**2 / 2
    return Deviation(tokens, 0, error, 1 - 9 * lack, 1 - 4 * lack, 1 - lack, 5 * error, quantiles)


NO_TOKENS = Deviation(0, 0, None, None, None, None, None, None)


def histogram(error: float) -> dict[str, int]:
    """Cosine distances of 1,800 tokens about that of a relative L2."""
    bounds = [*BOUNDS, 2.0]
    centre = np.log10(error**2 / 2)
    weights = [np.exp(-((np.log10(bound) - centre) ** 2) / 0.5) for bound in bounds]
    return {f"{bound:.3g}": int(1800 * weight / sum(weights)) for bound, weight in zip(bounds, weights, strict=True)}


def agreement(error: float, *, projected: bool = True) -> Agreement:
    """An agreement of about a relative L2."""
    factors = (0.7, 1.3, 2.1, 1.1, 0.9, 1.7, 1.2)
    return Agreement(
        tokens=deviation(error),
        padding=NO_TOKENS,
        pooled=None,
        null=deviation(2 * error, 512),
        projected=deviation(1.4 * error) if projected else None,
        cosine_distances=histogram(error),
        prompts=tuple(
            PromptDeviation(
                prompt=prompt,
                tokens=len(prompt) // 4 + 1,
                relative_l2=factor * error,
                cosine_min=1 - 4 * (factor * error) ** 2,
                cosine_mean=1 - (factor * error) ** 2 / 2,
                nonfinite=0,
            )
            for prompt, factor in zip(PROMPTS, factors, strict=True)
        ),
    )


def memory(own: int, mapped: int, peak: int, gpu: GpuMemory | None = None) -> ProcessMemory:
    """Memory of a process, all in MiB."""
    stages = {
        name: Memory(
            anonymous=int(share * own) * MIB,
            file_backed=int(180 + mapped_share * mapped) * MIB,
            shared=0,
            proportional=int(share * own + 160 + mapped_share * mapped) * MIB,
            swap=0,
            peak_rss=int(180 + share * peak) * MIB,
        )
        for name, share, mapped_share in (
            ("import", 0.03, 0.0),
            ("load", 0.6, 0.1),
            ("first", 0.95, 0.98),
            ("steady", 1.0, 1.0),
        )
    }
    return ProcessMemory(
        stages=stages,
        peak_anonymous=int(1.1 * own) * MIB,
        processes=2,
        total_proportional=(2 * own + mapped + 220) * MIB,
        gpu=gpu,
    )


def cold(interpreter: float, imports: float, load: float, first: float) -> ColdStart:
    """A cold start by its phases."""
    total = interpreter + imports + load + first
    return ColdStart(starts=3, interpreter=interpreter, imports=imports, load=load, first=first, total=total)


def latencies(medians: Mapping[str, float], name: str, spread: float = 0.02) -> tuple[Latency, ...]:
    """Of every size, from the time of 512 tokens; ratios to PyTorch's."""
    return tuple(_latency(medians, name, batch, sequence, spread) for batch, sequence in SIZES)


def _latency(medians: Mapping[str, float], name: str, batch: int, sequence: int, spread: float) -> Latency:
    seconds = {who: _runs(who, median * sequence / 512, spread) for who, median in medians.items()}
    own = seconds[name]
    median = float(np.median(own))
    return Latency(
        batch=batch,
        sequence=sequence,
        seconds=own,
        median=median,
        p95=percentile_95(own),
        variation=variation(own),
        tokens_per_second=batch * sequence / median,
        bound=Bound(
            name="memory" if sequence < 100 else "compute", seconds=0.4 * min(own), share=0.4 * min(own) / median
        ),
        ratios={who: ratio(own, seconds[who]) for who in medians if who.startswith("torch") and who != name},
    )


def _runs(name: str, median: float, spread: float) -> tuple[float, ...]:
    noise = np.random.default_rng(sum(name.encode())).normal(1, spread, 9)
    return tuple((median * noise).tolist())


def subject(name: str, title: str, **changes: object) -> SubjectRecord:
    """A subject of which nothing was measured, unless told otherwise."""
    plain = SubjectRecord(
        name=name,
        title=title,
        role="pytorch" if name.startswith("torch") else "target",
        planned=name != "torch-dense",
        computes_in="fp32",
        weights_bytes=(9081 if name == "torch-dense" else 5480) * MIB,
    )
    return replace(plain, **changes)  # type: ignore[arg-type]


MEDIANS = {
    "torch-dense": 5.21,
    "torch-plan": 3.09,
    "onnx": 2.94,
    "onnx:prepacked": 2.61,
    "pt2": 3.02,
    "aoti": 2.47,
}


def full() -> Measurement:
    """On a CPU, with a reference: everything was measured, and two checks failed."""
    parts = {
        "torch-dense": ("PyTorch fp32, dense", memory(9310, 120, 18400), (0.11, 4.1, 9.8, 5.4), None, 2e-6),
        "torch-plan": ("PyTorch fp32, the plan", memory(5690, 120, 11200), (0.11, 4.2, 6.0, 3.2), 1.1e-6, 0.214),
        "onnx": ("ONNX Runtime, mapped", memory(212, 5520, 5900), (0.11, 0.4, 0.6, 3.6), 1.4e-6, 0.214),
        "onnx:prepacked": ("ONNX Runtime, pre-packed", memory(5700, 160, 11350), (0.11, 0.4, 5.1, 2.7), 1.4e-6, 0.214),
        "pt2": ("torch.export program", memory(390, 5560, 6200), (0.11, 2.1, 0.9, 4.0), 1.1e-6, 0.214),
        "aoti": ("AOTInductor", memory(310, 5540, 6010), (0.11, 1.9, 0.3, 2.9), 6.2e-5, 0.2141),
    }
    subjects = tuple(
        subject(
            name,
            title,
            memory=held,
            cold_start=cold(*phases),
            latencies=latencies(MEDIANS, name, 0.08 if name == "pt2" else 0.02),
            drift=None if drift is None else agreement(drift),
            loss=agreement(loss),
            invariance=Invariance(repeat=0.0, batch=2.3e-7, sequence=None if name == "aoti" else 3.1e-7),
        )
        for name, (title, held, phases, drift, loss) in parts.items()
    )
    return Measurement(
        tool="skrr-export 0.1.0",
        started="2026-11-25T09:12:44+00:00",
        seconds=1312.4,
        bundle=BundleFacts(
            path="/data/bundles/flux-t5-xxl-40.bundle",
            manifest_sha256="5c" * 32,
            family="t5",
            num_layers=24,
            hidden_size=4096,
            dtype="fp32",
            pipeline="flux.1",
            plan=plan(24).to_dict(),
            total_parameters=4_762_310_656,
            kept_parameters=2_873_155_584,
            weights_bytes=5480 * MIB,
        ),
        settings=Settings(
            command="skrr-export measure /data/bundles/flux-t5-xxl-40.bundle --reference google/t5-v1_1-xxl "
            "--denoiser black-forest-labs/FLUX.1-dev --html report.html",
            reference="/data/checkpoints/t5-v1_1-xxl",
            device="cpu",
            threads=16,
            runs=9,
            processes=2,
            prompts=len(PROMPTS),
            denoiser="context_embedder.weight [3072, 4096] of diffusion_pytorch_model.safetensors",
            largest=SIZES[-1],
        ),
        machine={
            "cpu": "AMD EPYC 9654 96-Core Processor",
            "cores": 16,
            "memory_bytes": 64 << 30,
            "kernel": "6.8.0-45-generic",
            "gpu": None,
        },
        versions={"python": "3.12.4", "skrr-export": "0.1.0", "torch": "2.13.0", "onnxruntime": "1.24.1"},
        hardware=Hardware(copy_bytes_per_second=61.4e9, matmul_flops_per_second={"fp32": 1.31e12}),
        subjects=subjects,
        verdicts=(
            *(_verdict(f"{one.name}: tokens: drift, relative L2", _drift(one), 5e-5) for one in subjects[2:]),
            *(_verdict(f"{one.name}: invariance, batch", 2.3e-7, 5e-5) for one in subjects[2:]),
            Verdict(
                check="onnx:prepacked: memory",
                passed=False,
                value=11350 * MIB,
                limit=6144 * MIB,
                message="onnx:prepacked: memory 11,350 MiB exceeds 6,144 MiB; the smallest limit that would pass is "
                "11,400 MiB",
            ),
            _verdict("onnx:prepacked: latency, times torch-dense's", 0.5, 1.1),
        ),
    )


def plan(layers: int) -> Plan:
    """Skips and re-uses about 40% of the layers' halves."""
    order = [2 * layer + half for layer in range(3, layers - 2, 2) for half in (0, 1)]
    return Plan.from_order(
        "t5", layers, order, drop=len(order), reuse={order[0]: order[0] - 2, order[-1]: 2 * layers - 1}
    )


def _drift(one: SubjectRecord) -> float:
    assert one.drift is not None
    assert one.drift.tokens is not None
    assert one.drift.tokens.relative_l2 is not None
    return one.drift.tokens.relative_l2


def _verdict(check: str, value: float, limit: float) -> Verdict:
    words = "is within" if value <= limit else "exceeds"
    end = "" if value <= limit else f"; the smallest limit that would pass is {value:.3g}"
    message = f"{check} {value:.3g} {words} {limit:.3g} for fp32{end}"
    return Verdict(check=check, passed=value <= limit, value=value, limit=limit, message=message)


def without_reference() -> Measurement:
    """No dense encoder, and so no loss; everything passed."""
    whole = full()
    subjects = tuple(
        replace(one, loss=None, latencies=latencies(_without_dense(), one.name)) for one in whole.subjects[1:]
    )
    return replace(
        whole,
        settings=replace(whole.settings, reference=None, denoiser=None),
        subjects=subjects,
        verdicts=tuple(verdict for verdict in whole.verdicts if verdict.passed),
    )


def _without_dense() -> dict[str, float]:
    return {name: median for name, median in MEDIANS.items() if name != "torch-dense"}


CRASH = "the process died of signal 9 (SIGKILL): the system ran out of memory"
SKIPPED = "an engine runs on an NVIDIA GPU: use --device cuda"


def with_failures() -> Measurement:
    """One subject crashed after its memory was measured, one at once, and engines were skipped."""
    whole = full()
    prepacked = whole.subject("onnx:prepacked")
    assert prepacked is not None
    lost = replace(prepacked, error=CRASH, cold_start=None, latencies=(), drift=None, loss=None, invariance=None)
    dead = subject(
        "pt2", "torch.export program", error="cannot load model.pt2: File <truncated> & more", computes_in=None
    )
    engine = subject("tensorrt-rtx", "TensorRT-RTX", error=SKIPPED, skipped=True, computes_in=None)
    failure = Verdict(check="pt2: ran", passed=False, value=None, limit=None, message=f"pt2: {dead.error}")
    return replace(
        whole,
        subjects=(*whole.subjects[:3], lost, dead, engine),
        verdicts=(failure, *whole.verdicts[:1]),
        notes=("fp32 reference: 2 prompts were truncated",),
    )


def gpu() -> Measurement:
    """On a GPU, in bf16."""
    whole = full()
    medians = {"torch-dense": 0.0312, "torch-plan": 0.0191, "onnx": 0.0202, "tensorrt-rtx": 0.0138}
    titles = {
        "torch-dense": "PyTorch bf16, dense",
        "torch-plan": "PyTorch bf16, the plan",
        "onnx": "ONNX Runtime, mapped",
        "tensorrt-rtx": "TensorRT-RTX",
    }
    held = {
        "torch-dense": GpuMemory(process=9820 * MIB, torch_peak=9310 * MIB, engine=None),
        "torch-plan": GpuMemory(process=6120 * MIB, torch_peak=5610 * MIB, engine=None),
        "onnx": GpuMemory(process=6480 * MIB, torch_peak=None, engine=None),
        "tensorrt-rtx": GpuMemory(process=6010 * MIB, torch_peak=None, engine=96 * MIB),
    }
    subjects = tuple(
        subject(
            name,
            title,
            computes_in="bf16",
            memory=memory(1450, 900, 6400, held[name]),
            cold_start=cold(0.1, 2.4, 1.9, 0.4),
            latencies=latencies(medians, name),
            drift=None if name == "torch-dense" else agreement(9e-3, projected=False),
            loss=agreement(8e-3 if name == "torch-dense" else 0.22, projected=False),
            invariance=Invariance(repeat=0.0, batch=4e-3, sequence=None),
        )
        for name, title in titles.items()
    )
    return replace(
        whole,
        bundle=replace(whole.bundle, dtype="bf16"),
        settings=replace(whole.settings, device="cuda"),
        machine={**whole.machine, "gpu": "NVIDIA H100 80GB HBM3"},
        hardware=Hardware(copy_bytes_per_second=2.6e12, matmul_flops_per_second={"fp32": 5.1e13, "bf16": 7.2e14}),
        subjects=subjects,
        verdicts=tuple(verdict for verdict in whole.verdicts if verdict.passed),
    )


def nothing() -> Measurement:
    """Every number that may be missing is."""
    whole = full()
    return replace(
        whole,
        bundle=replace(whole.bundle, plan=plan(8).to_dict()),
        settings=replace(whole.settings, command="", reference=None, denoiser=None, prompts=0),
        machine=dict.fromkeys(whole.machine),
        versions={},
        hardware=Hardware(copy_bytes_per_second=None, matmul_flops_per_second={}),
        subjects=(
            subject("torch-plan", "PyTorch fp32, the plan", computes_in=None, weights_bytes=None),
            subject("onnx", "ONNX Runtime, mapped", computes_in=None, weights_bytes=None),
        ),
        verdicts=(),
    )


def hollow() -> Measurement:
    """Everything was measured, and every number inside that may be missing is."""
    whole = full()
    empty = Agreement(
        tokens=NO_TOKENS,
        padding=NO_TOKENS,
        pooled=None,
        null=None,
        projected=None,
        cosine_distances={},
        prompts=(
            PromptDeviation(
                prompt=PROMPTS[0], tokens=0, relative_l2=None, cosine_min=None, cosine_mean=None, nonfinite=0
            ),
        ),
    )
    no_gpu = GpuMemory(process=None, torch_peak=None, engine=None)
    held = ProcessMemory(stages={}, peak_anonymous=None, processes=None, total_proportional=None, gpu=no_gpu)
    subjects = tuple(
        replace(
            one,
            memory=held,
            drift=empty,
            loss=empty,
            invariance=Invariance(repeat=None, batch=None, sequence=None),
            latencies=tuple(replace(latency, bound=None, ratios={}) for latency in one.latencies),
        )
        for one in whole.subjects
    )
    verdict = Verdict(check="onnx: drift", passed=False, value=None, limit=None, message="onnx: drift was not measured")
    return replace(whole, subjects=subjects, verdicts=(verdict,))


EXAMPLES = {make.__name__: make for make in (full, without_reference, with_failures, gpu, nothing, hollow)}
"""Builders of all, by name."""
