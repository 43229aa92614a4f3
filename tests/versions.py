"""Which transformers is installed, beside the one that constraints.txt pins."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import transformers
from packaging.version import Version

INSTALLED = Version(transformers.__version__)
PINNED = Version(
    re.findall(r"^transformers==(\S+)", (Path(__file__).parents[1] / "constraints.txt").read_text(), re.M)[0]
)

of_pinned = pytest.mark.skipif(INSTALLED != PINNED, reason=f"what is checked in is of transformers {PINNED}")


def skip_before(version: str, reason: str) -> None:
    """Skip the running test with transformers older than this."""
    if Version(version) > INSTALLED:
        pytest.skip(f"with transformers {INSTALLED}, {reason}")


def skip_phi3(case: str) -> None:
    """Skip the running test where Phi 3's own class generates wrongly once it leaves its first context."""
    if case == "phi3":
        skip_before(
            "5.23", "Phi 3 drops its cache at the end of its first context, and not what it had skipped"
        )
