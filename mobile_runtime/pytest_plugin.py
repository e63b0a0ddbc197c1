"""Parity in anyone's CI: `pytest --pocketune-bundle DIR` has a test for every gate.

In: bundles on the command line. Out: test items called `pocketune::<bundle>::<gate>`. The bundles
are measured once, while tests are collected, since the goldens decide which gates there are. A
bundle that is refused is one failing test called `opened`.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from mobile_runtime.gates import Gate


def pytest_addoption(parser: pytest.Parser) -> None:
    """Two options, in a group of their own in `pytest --help`."""
    group = parser.getgroup("pocketune", "parity of what was exported for a phone")
    group.addoption(
        "--pocketune-bundle", type=Path, metavar="DIR", help="AdapterBundle, or a BaseBundle alone."
    )
    group.addoption(
        "--pocketune-base", type=Path, metavar="DIR",
        help="BaseBundle of the adapter; a merged bundle needs none.",
    )  # fmt: skip


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(
    session: pytest.Session, config: pytest.Config, items: list[pytest.Item]
) -> None:
    """Add the gates before others choose among the tests, so that -k finds them."""
    bundle: Path | None = config.getoption("pocketune_bundle")
    base: Path | None = config.getoption("pocketune_base")
    if bundle is None and base is not None:
        raise pytest.UsageError("--pocketune-base needs --pocketune-bundle; give the base as that")
    if bundle is not None:
        items += [
            GateItem.from_parent(
                session, name=gate.name, gate=gate, nodeid=f"pocketune::{bundle.name}::{gate.name}"
            )
            for gate in measured(bundle, base)
        ]


def measured(bundle: Path, base: Path | None) -> list[Gate]:
    """Every gate of a bundle; one called `opened` if it is refused."""
    from mobile_runtime.gates import fact_gate
    from mobile_runtime.parity import measure_parity
    from protos.artifacts import open_artifact
    from protos.errors import PocketuneError

    try:
        alone = base is None and open_artifact(bundle).manifest.kind == "BaseBundle"
        result = measure_parity(bundle, None) if alone else measure_parity(base, bundle)
    except PocketuneError as error:
        return [fact_gate("opened", False, str(error), "opened", "the bundle can be measured")]
    return result.gates


class GateItem(pytest.Item):
    """One gate as a test; its numbers are properties in a JUnit report."""

    def __init__(self, *, gate: Gate, name: str, parent: pytest.Session, nodeid: str) -> None:
        super().__init__(name, parent, nodeid=nodeid)
        self.gate = gate
        asked = f"{gate.relation} {gate.limit}"
        self.user_properties += [("found", str(gate.value)), ("asked", asked)]

    def runtest(self) -> None:
        if not self.gate.passed:
            raise GateFailedError

    def repr_failure(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, excinfo: pytest.ExceptionInfo[BaseException], style: None = None
    ) -> str:
        gate = self.gate
        return (
            f"{gate.name} is {gate.value}, asked {gate.relation} {gate.limit}: {gate.explanation}"
        )

    def reportinfo(self) -> tuple[Path, None, str]:
        return self.path, None, f"pocketune: {self.name}"


class GateFailedError(Exception):
    """A gate did not pass."""
