"""Whether what a benchmark exports is right: parity before it is timed, the same bytes after.

In: bundles. Out: what there is to say about their parity, for a row's note. The weights of the 135M
shape are random: a gate that says what those do, and not what the export does, may be named as one
that may fail.
"""

from __future__ import annotations

from pathlib import Path

NEAR_TIES = ("lowering_top1",)
"""Of random weights, rounding flips the likeliest token where two are almost as likely."""
FOUR_BITS = ("effect_cosine", "effect_norm", "quantization_kl_mean")
"""What MLC's four bits do to random weights, and to an adapter merged into them; whether a bundle
answers as PyTorch does with the very same weights is for the gates of lowering."""


def hold(
    name: str, base: Path | None, adapter: Path, threads: int, *,
    may_fail: tuple[str, ...] = (), cache: Path | None = None,
) -> str:  # fmt: skip
    """Parity of a bundle with goldens; gives what there is to say about it.

    may_fail: how the names of gates begin that may.

    Raises:
        SystemExit: it does not answer as PEFT does.
    """
    from mobile_runtime.parity import measure_parity

    parity = measure_parity(base, adapter, threads, cache_dir=cache)
    failed = [gate.name for gate in parity.gates if not gate.passed]
    wrong = [gate for gate in failed if not gate.startswith(may_fail)]
    if wrong:
        raise SystemExit(f"{name} does not answer as PEFT does: {', '.join(wrong)}")
    return f"random weights: {', '.join(failed)} not met" if failed else "sound"


def hold_same(name: str, checked: Path, again: Path) -> None:
    """See to it that a bundle without goldens has the files of the one whose parity was measured.

    Raises:
        SystemExit: it has others.
    """
    from protos.artifacts import open_artifact

    wanted, found = (open_artifact(path).manifest.files for path in (checked, again))
    other = [file for file, entry in found.items() if wanted.get(file) != entry]
    if other or not found:
        raise SystemExit(f"{name}: not the bundle that was checked: {', '.join(other)}")
