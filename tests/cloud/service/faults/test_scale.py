"""The scale benchmark, small: workers are killed, and each user is personalized exactly once."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[4]


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_the_benchmark_ends_each_operation_once_and_says_so(
    sound_base: Path, tmp_path: Path, fresh_postgresql: str, s3: str
):
    out = tmp_path / "figures.json"
    done = subprocess.run(
        [sys.executable, ROOT / "benchmarks/scale.py", "--users", "4", "--kill-every", "4",
         "--most-kills", "2", "--base", sound_base, "--recipe", "executorch-xnnpack-fp32",
         "--database-url", fresh_postgresql, "--s3", s3, "--out", out],
        cwd=ROOT, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    figures = json.loads(out.read_text())
    assert (figures["users"], figures["kills"], figures["problems"]) == (4, 2, [])
    assert sum(figures["attempts"].values()) == 4 + 2  # and the base: made, lowered
    assert sum(int(n) * count for n, count in figures["attempts"].items()) > 4 + 2
