"""Generate the Python code of `protos/v1/*.proto` beside it: messages, type stubs, gRPC stubs.

    python -m protos.generate             write the code
    python -m protos.generate --image F   write a descriptor image for `buf lint` and `buf breaking`

Paths are given from the repository's root, so `protoc -I.` emits imports that work as they are.
grpcio-tools stays at 1.80: its code runs on protobuf 6.31 and newer, that of 1.81 asks for 6.33.5.
CI generates into the checkout and fails where `git diff` finds anything.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
from importlib.metadata import distribution, version
from importlib.resources import files
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TOOLS_BELOW = (1, 81)


def main() -> int:
    """Run protoc over every proto file of the API."""
    parser = argparse.ArgumentParser(description="Generate the code of pocketune.v1.")
    parser.add_argument("--out", type=Path, default=ROOT, help="root of the generated tree")
    parser.add_argument("--image", type=Path, help="write a descriptor image instead")
    given = parser.parse_args()
    if tuple(map(int, version("grpcio-tools").split(".")[:2])) >= TOOLS_BELOW:
        return _fail(
            "grpcio-tools must be below 1.81: newer code refuses the floor, protobuf 6.33.0"
        )
    outputs = [f"--{kind}_out={given.out}" for kind in ("python", "pyi", "grpc_python")]
    if given.image:
        outputs = ["--include_imports", "--include_source_info", f"-o{given.image}"]
    with tempfile.TemporaryDirectory() as folder:
        return _protoc(Path(folder), outputs)


def _protoc(folder: Path, outputs: list[str]) -> int:
    """Run protoc with `google/longrunning/operations.proto` under the name it is known by.

    The wheel of googleapis-common-protos ships that file as `operations_proto.proto`, while its
    own Python code registers it under the proper name.
    """
    from grpc_tools import protoc

    googleapis = Path(str(distribution("googleapis-common-protos").locate_file("")))
    longrunning = folder / "google" / "longrunning"
    longrunning.mkdir(parents=True)
    shutil.copy(
        googleapis / "google/longrunning/operations_proto.proto", longrunning / "operations.proto"
    )
    sources = sorted(p.relative_to(ROOT).as_posix() for p in (ROOT / "protos/v1").glob("*.proto"))
    includes = [ROOT, folder, googleapis, files("grpc_tools") / "_proto"]
    return protoc.main(["protoc", *(f"-I{path}" for path in includes), *outputs, *sources])


def _fail(message: str) -> int:
    print(f"Error: {message}", file=sys.stderr)  # noqa: T201
    return 1


if __name__ == "__main__":
    sys.exit(main())
