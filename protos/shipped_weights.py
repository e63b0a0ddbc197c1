"""A base's weights as its phone multiplies with them, read back from a BaseBundle.

In: a BaseBundle of any backend. Out: float32 arrays under Hugging Face's names, or a model of them.
`layout.json` lists under "weights" where each one lies; `export base` writes that list, and nothing
here knows a model.

    float   numbers as they are, float32 or float16
    int8    a byte a weight, one float32 scale a row:            w = q x scale
    int4    XNNPACK's: two a byte, the first in the low half,
            a bfloat16 scale for each group of a row:            w = (q - 8) x scale
    q4      MLC's groups of 32: see `protos.group_quantization`
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from protos import group_quantization, ptd, tensor_cache
from protos.artifacts import Artifact, read_json
from protos.base_model import BaseModel, load_model
from protos.errors import ArtifactError, InputError, MismatchError

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

LAYOUT_FILE = "layout.json"
DATA_FILE = "foundation.ptd"
FORMS = ("float", "int8", "int4", "q4")

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class StoredWeight:
    """Where one parameter lies.

    name: Hugging Face's. shape: of the parameter. key: of its numbers in the bundle's data file or
    tensor cache; scales: of its scales, "" where it has none. first_row: where its rows begin in a
    tensor that several parameters share.
    """

    name: str
    shape: tuple[int, ...]
    form: Literal["float", "int8", "int4", "q4"]
    key: str
    scales: str = ""
    first_row: int = 0


def weights_json(weights: Iterable[StoredWeight]) -> list[dict[str, Any]]:
    """The list "weights" of `layout.json`."""
    return [{**asdict(weight), "shape": list(weight.shape)} for weight in weights]


def shipped_weights(bundle: Artifact) -> Iterator[tuple[str, Floats]]:
    """Name and weights of every parameter that the bundle holds, one after the other.

    Raises:
        ArtifactError: it does not say where they are, or says what cannot be.
    """
    source = bundle.file(LAYOUT_FILE)
    try:
        listed = read_json(source).get("weights")
        if listed is None:
            raise ArtifactError(
                f"{bundle.path}: made before bundles said where their weights are; export the base "
                "again"
            )
        read = _data_file(bundle) if DATA_FILE in bundle.manifest.files else _cache(bundle)
        for weight in map(_parsed, listed):
            yield weight.name, _DECODERS[weight.form](weight, read)
    except (InputError, KeyError, TypeError, ValueError, AttributeError) as error:
        raise ArtifactError(f"{source}: malformed list of weights ({error})") from None


_Read = Callable[[str, str], NDArray[Any]]
"""(key, dtype) -> the numbers under that key; the tensor cache knows shape and dtype itself."""


def _data_file(bundle: Artifact) -> _Read:
    path = bundle.file(DATA_FILE)
    content = np.memmap(path, np.uint8, "r")
    tensors = {tensor.key: tensor for tensor in ptd.read_ptd(path)}

    def read(key: str, dtype: str) -> NDArray[Any]:
        tensor = tensors[key]
        return content[tensor.offset : tensor.offset + tensor.size_bytes].view(dtype)

    return read


def _cache(bundle: Artifact) -> _Read:
    cache = tensor_cache.read_tensor_cache(bundle.file(tensor_cache.FILE), [bundle.path])
    return lambda key, _: cache[key]


def _parsed(raw: Mapping[str, Any]) -> StoredWeight:
    shape = tuple(int(size) for size in raw["shape"])
    weight = StoredWeight(
        str(raw["name"]), shape, raw["form"], str(raw["key"]), str(raw["scales"]),
        int(raw["first_row"]),
    )  # fmt: skip
    rows_alone = len(shape) == 2 or weight.form == "float"
    if weight.form not in FORMS or min(shape) < 1 or weight.first_row < 0 or not rows_alone:
        raise ValueError(f"{weight.name}: form {weight.form!r}, shape {shape}")
    return weight


def _float(weight: StoredWeight, read: _Read) -> Floats:
    stored = read(weight.key, "<f4").reshape(-1, *weight.shape[1:])
    return _rows(weight, stored).astype(np.float32)


def _int8(weight: StoredWeight, read: _Read) -> Floats:
    numbers = read(weight.key, "<i1").reshape(weight.shape)
    return numbers.astype(np.float32) * read(weight.scales, "<f4").reshape(-1, 1)


def _int4(weight: StoredWeight, read: _Read) -> Floats:
    rows, columns = weight.shape
    pairs = read(weight.key, "<u1").reshape(rows, -1, 1)
    halves = np.concatenate([pairs & 15, pairs >> 4], axis=2).reshape(rows, -1)[:, :columns]
    scales = _bfloat16(read(weight.scales, "<u2")).reshape(rows, -1)
    return (halves.astype(np.float32) - 8) * np.repeat(scales, columns // scales.shape[1], axis=1)


def _bfloat16(bits: NDArray[np.uint16]) -> Floats:
    """bfloat16 is the upper half of a float32."""
    return (bits.astype(np.uint32) << 16).view(np.float32)


def _q4(weight: StoredWeight, read: _Read) -> Floats:
    words, scales = (_rows(weight, read(key, "")) for key in (weight.key, weight.scales))
    return group_quantization.dequantize(words, scales, weight.shape[1])


def _rows(weight: StoredWeight, stored: NDArray[Any]) -> NDArray[Any]:
    rows = stored[weight.first_row : weight.first_row + weight.shape[0]]
    if len(rows) != weight.shape[0]:
        raise ValueError(f"{weight.name}: {len(rows)} rows under {weight.key}")
    return rows


_DECODERS: Mapping[str, Callable[[StoredWeight, _Read], Floats]] = {
    "float": _float,
    "int8": _int8,
    "int4": _int4,
    "q4": _q4,
}


def load_shipped(base: BaseModel, bundle: Artifact, dtype: torch.dtype) -> PreTrainedModel:
    """The model with the weights that its bundle ships, rounded to `dtype`, on the CPU.

    A head that is stored apart from its embedding gets weights of its own.

    Raises:
        MismatchError: the bundle was made from another base.
        ArtifactError: it does not hold every parameter of the model.
    """
    import torch

    wanted = bundle.manifest.parents.get("base_model")
    if wanted != base.digest:
        raise MismatchError(
            f"{bundle.path}: made from base model {str(wanted)[:12]}, but {base.name} is "
            f"{base.digest[:12]}; give the bundle of this base"
        )
    model = load_model(base, dtype)
    missing, homeless = {name for name, _ in model.named_parameters()}, list[str]()
    with torch.no_grad():
        for name, weights in shipped_weights(bundle):
            _untie(model, name)
            parameter = dict(model.named_parameters()).get(name)
            if parameter is None or parameter.shape != weights.shape:
                homeless.append(name)
            else:
                parameter.copy_(torch.from_numpy(weights))
            missing.discard(name)
    if wrong := sorted(missing) + homeless:
        raise ArtifactError(
            f"{bundle.path}: cannot read back {', '.join(wrong[:4])}"
            f"{f' and {len(wrong) - 4} more' if len(wrong) > 4 else ''}; train over the float base"
        )
    return model


def _untie(model: PreTrainedModel, name: str) -> None:
    """Give the head a parameter of its own if `name` is the head's and it has its embedding's."""
    import torch

    language_model: Any = model
    head, embedding = language_model.get_output_embeddings(), language_model.get_input_embeddings()
    if head is None or head.weight is not embedding.weight:
        return
    if any(module is head and name == f"{path}.weight" for path, module in model.named_modules()):
        head.weight = torch.nn.Parameter(torch.empty_like(embedding.weight))
        model.config.tie_word_embeddings = False
