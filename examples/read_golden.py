"""Reads a bundle's goldens in plain Python, to show that any language can (docs/goldens.md).

`python examples/read_golden.py DIR` prints what is in them.
"""

import json
import struct
import sys
from pathlib import Path

CODES = {"F32": "f", "I32": "i"}


def read_golden(directory: Path) -> tuple[dict, dict[str, tuple[list[int], tuple]]]:
    """What golden.json says, and every tensor as (shape, numbers in row-major order)."""
    said = json.loads((directory / "golden.json").read_text("utf-8"))
    if said["format"] != 1:
        raise ValueError(f"format {said['format']}, expected 1")
    data = (directory / "golden.safetensors").read_bytes()
    (length,) = struct.unpack_from("<Q", data)
    tensors = {}
    for name, entry in json.loads(data[8 : 8 + length]).items():
        if name != "__metadata__":
            start, end = (8 + length + offset for offset in entry["data_offsets"])
            code = f"<{(end - start) // 4}{CODES[entry['dtype']]}"
            tensors[name] = (entry["shape"], struct.unpack_from(code, data, start))
    return said, tensors


if __name__ == "__main__":
    golden, arrays = read_golden(Path(sys.argv[1]))
    for prompt in golden["prompts"]:
        sys.stdout.write(f"{prompt['name']}: {len(prompt['ids'])} ids\n")
    for name, (shape, _) in sorted(arrays.items()):
        sys.stdout.write(f"{name} {shape}\n")
