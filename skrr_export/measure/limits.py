"""What is measured of a drift, how far it may go, and why so far."""

from __future__ import annotations

from dataclasses import dataclass

QUANTILES = (0.5, 0.9, 0.99, 0.9999)
"""Of the absolute error, that reports give."""


@dataclass(frozen=True, slots=True)
class Limits:
    """Largest drift that passes, over all tokens that the pipeline reads."""

    relative_l2: float
    """Norm of the difference over the norm of the reference, all tokens together."""
    cosine_distance: float
    """1 - cosine, of the worst single token."""


LIMITS = {
    # Two orders of the same fp32 sums. Measured: 3e-7 (4 layers x 48) to 2e-6 (24 layers x 1024); a weight scaled by
    # 1% gives 1e-3. The cosine distance goes with the square of the error, and its own fp32 rounding is 1e-7.
    "fp32": Limits(relative_l2=5e-5, cosine_distance=1e-6),
    # Native half precision (GPUs): roundings of 2^-11 and 2^-8, some 10 a sub-block, against an fp32 reference.
    # By arithmetic for 48 sub-blocks: sqrt(480) * 2^-12 = 5e-3 and sqrt(480) * 2^-9 = 4e-2. Measured in bf16 on a CPU,
    # 24 layers x 1024: 1.4e-2 (AOTInductor) to 2.2e-2 (PyTorch itself).
    "fp16": Limits(relative_l2=1e-2, cosine_distance=1e-3),
    "bf16": Limits(relative_l2=8e-2, cosine_distance=2e-2),
}
"""By the precision the target computes in."""
