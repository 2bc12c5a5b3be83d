"""How many cores this process may keep busy."""

from __future__ import annotations

import os
from pathlib import Path

QUOTA = Path("/sys/fs/cgroup/cpu.max")
"""Of the container, in microseconds of each period: `max 100000`, or for two cores `200000 100000`."""


def cores() -> int:
    """Cores that this process may run on, or fewer where a container's quota is less; at least 1."""
    allowed = len(os.sched_getaffinity(0))
    try:
        quota, period = QUOTA.read_text(encoding="ascii").split()
        return max(1, min(allowed, int(quota) // int(period)))
    except (OSError, ValueError):  # another kind of cgroup, or no quota
        return allowed
