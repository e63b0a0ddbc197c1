"""`export package`: an MLC bundle becomes what goes into an Android or iOS app.

In: a BaseBundle with an AdapterBundle, or a merged bundle. Out: a folder with the model directory
that MLC reads, `mlc-package-config.json`, and what MLC's own tools build from them: the library for
the phone's GPU and the packaged app resources. Those tools run in an environment of their own, out
of process: mlc_llm brings a TVM of its own.
"""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from export.mlc.chat_config import FILE as CHAT_CONFIG
from export.mlc.chat_config import read_chat_config
from export.prompt_format import TOKENIZER_FILE
from protos.artifacts import Artifact, open_artifact, write_json
from protos.errors import InputError, MismatchError, UnsupportedError
from protos.tensor_cache import FILE as TENSOR_CACHE
from protos.tensor_cache import read_shards

PACKAGE_CONFIG = "mlc-package-config.json"
LOG_FILE = "mlc_llm.log"
DEVICES = {"android": "android", "ios": "iphone"}
"""Platform -> MLC's name of the device."""
HOW_TO_INSTALL = (
    "mlc_llm is not in that environment. It is on no package index: in an environment of its own, "
    "python -m pip install --pre -U -f https://mlc.ai/wheels mlc-llm-nightly-cpu "
    "mlc-ai-nightly-cpu; name it with --mlc-python, or write the folder alone with --assemble-only"
)
_LORA_MODEL = Path(__file__).with_name("lora_model.py")
_RUNTIME_BYTES = 200 * 2**20
"""What an engine takes beside its weights and cache, for the app's own check of free memory."""


@dataclass(frozen=True)
class Tools:
    """Where MLC's own tools are. source: a copy of mlc-llm's repository, which `package` needs."""

    python: str
    source: Path | None


def export_package(
    base: Path | None,
    adapter: Path | None,
    platform: str,
    out: Path,
    tools: Tools | None,
) -> Path:
    """Write the folder; with `tools`, also compile the library and package the app's resources.

    Raises:
        InputError: no bundle is given, or one is missing, or `out` holds something else.
        UnsupportedError: the bundle is not for MLC, mlc_llm is not there, or it failed; its log
            stays beside `out`.
        MismatchError: the adapter was made for another base.
    """
    if platform not in DEVICES:
        raise InputError(f"platform {platform!r} is unknown; it is {' or '.join(DEVICES)}")
    parts = _parts(base, adapter)
    if tools is not None:
        check_tools(tools)
    if out.exists() and not (out / PACKAGE_CONFIG).is_file():
        raise InputError(f"{out}: exists and is no package of ours; nothing was written")
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}.") as temporary:
        work = Path(temporary) / "package"
        model = work / "model"
        assemble(parts, model)
        library = _library_name(model)
        _write_package_config(work, model, DEVICES[platform], library)
        if tools is not None:
            _build(tools, work, model, DEVICES[platform], library, out)
        if out.exists():
            shutil.rmtree(out)
        work.rename(out)
    return out


def assemble(parts: Sequence[Artifact], directory: Path) -> None:
    """One flat model directory from a base and an adapter; the adapter's files come first.

    Raises:
        UnsupportedError: they are no MLC bundles.
    """
    directory.mkdir(parents=True)
    first = parts[0]
    if TENSOR_CACHE not in first.manifest.files:
        raise UnsupportedError(f"{first.path}: this bundle is not for MLC; export it with mlc-…")
    names = [CHAT_CONFIG, TENSOR_CACHE, TOKENIZER_FILE]
    names += [shard.dataPath for shard in read_shards(first.file(TENSOR_CACHE))]
    for name in names:
        home = next((part for part in parts if name in part.manifest.files), None)
        if home is None:
            raise InputError(
                f"{first.path}: needs {name} of its base; give the base bundle as well"
            )
        shutil.copyfile(home.file(name), directory / name)


def check_tools(tools: Tools) -> None:
    """Make sure that MLC's tools can run.

    Raises:
        UnsupportedError: they are not there; the message says how to get them.
    """
    ask = [tools.python, "-c", "import mlc_llm"]
    try:
        found = subprocess.run(ask, capture_output=True, check=False).returncode == 0
    except OSError:
        found = False
    if not found:
        raise UnsupportedError(f"{tools.python}: {HOW_TO_INSTALL}")
    if tools.source is None or not (tools.source / "python").is_dir():
        raise UnsupportedError(
            "packaging needs a copy of MLC's repository: git clone --recursive "
            "https://github.com/mlc-ai/mlc-llm, and name it with --mlc-source"
        )


def _parts(base: Path | None, adapter: Path | None) -> list[Artifact]:
    opened = None if base is None else open_artifact(base, "BaseBundle")
    if adapter is None:
        if opened is None:
            raise InputError("neither a base bundle nor an adapter bundle is given")
        return [opened]
    user = open_artifact(adapter, "AdapterBundle")
    wanted = user.manifest.parents.get("base_bundle")
    if opened is None:
        return [user]
    if wanted != opened.id:
        raise MismatchError(
            f"{adapter}: this adapter was made for the base bundle {wanted}, but {base} is "
            f"{opened.id}"
        )
    return [user, opened]


def _library_name(model: Path) -> str:
    """The library's symbol prefix, as MLC's own command line would make it."""
    chat = read_chat_config(model)
    return f"{chat['model_type']}_{chat['quantization']}".replace("-", "_")


def _write_package_config(work: Path, model: Path, device: str, library: str) -> None:
    chat = read_chat_config(model)
    weights = sum(shard.nbytes for shard in read_shards(model / TENSOR_CACHE))
    entry = {
        "model": model.name,
        "model_id": f"pocketune-{library}",
        "model_lib": library,
        "estimated_vram_bytes": weights + _cache_bytes(chat) + _RUNTIME_BYTES,
        "bundle_weight": True,
        "overrides": {"context_window_size": chat["context_window_size"]},
    }
    libraries = {library: f"lib/{library}.tar"}
    config = {"device": device, "model_list": [entry], "model_lib_path_for_prepare_libs": libraries}
    write_json(work / PACKAGE_CONFIG, config)


def _cache_bytes(chat: dict[str, object]) -> int:
    """Keys and values of the whole context, two bytes or four each."""
    model = chat["model_config"]
    assert isinstance(model, dict)
    width = 2 if "f16" in str(chat["quantization"]) else 4
    per_token = 2 * model["num_hidden_layers"] * model["num_key_value_heads"] * model["head_dim"]
    return int(width * per_token * model["context_window_size"])


def _build(tools: Tools, work: Path, model: Path, device: str, library: str, out: Path) -> None:
    (work / "lib").mkdir()
    lora = "lora_ranks" in read_chat_config(model)["model_config"]
    program = [str(_LORA_MODEL)] if lora else ["-m", "mlc_llm"]
    prefix = f"{library}_"
    steps = [
        ["compile", str(model), "--device", device, "--output", f"lib/{library}.tar",
         "--system-lib-prefix", prefix],
        ["package", "--package-config", PACKAGE_CONFIG, "--mlc-llm-source-dir", str(tools.source),
         "--output", "dist"],
    ]  # fmt: skip
    log = work / LOG_FILE
    for step in steps:
        with log.open("ab") as stream:
            stream.write(f"$ mlc_llm {' '.join(step)}\n".encode())
            stream.flush()
            code = subprocess.run(
                [tools.python, *program, *step], cwd=work, stdout=stream, stderr=stream, check=False
            ).returncode
        if code:
            kept = out.with_name(f"{out.name}.{LOG_FILE}")
            shutil.copyfile(log, kept)
            raise UnsupportedError(f"mlc_llm {step[0]} failed with exit code {code}; see {kept}")
