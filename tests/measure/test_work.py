from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
from safetensors import safe_open

from skrr_export.bundle import Bundle
from skrr_export.encoders import bundle_encoder
from skrr_export.measure.record import Hardware
from skrr_export.measure.work import Work
from skrr_export.plan import Plan
from tests.bundles import PLAN, export
from tests.checkpoints import make_t5
