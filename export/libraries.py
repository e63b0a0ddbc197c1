"""Loading the large libraries: before any clock starts, and without their talk.

torchao, PEFT and ExecuTorch log and warn about their own internals (missing GPU kernels, names that
will change) on standard error, where our commands show progress.
"""

from __future__ import annotations

import contextlib
import importlib
import logging
import warnings
from collections.abc import Generator

_LARGE = (
    "torchao.quantization.quant_api",
    "transformers.models.auto.modeling_auto",
    "peft",
    "executorch.extension.flat_tensor.serialize.serialize",
)


def load_libraries() -> None:
    """Import what an export needs; afterwards it costs nothing more."""
    with quiet():
        for name in _LARGE:
            importlib.import_module(name)


@contextlib.contextmanager
def quiet() -> Generator[None]:
    """No warnings and no log lines below errors inside."""
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)
