"""Tensors out of a file that `torch.save` wrote, without torch and without running anything the file asks for.

A pickle is a small program: it may name any function and call it. What a state dict needs of that language is
little, so the program is read through once before any of it runs, and one instruction or name outside the list
refuses the file. What is on the list are stand-ins of this module, which call nothing.

References:
    torch/serialization.py, for the two layouts: a zip archive with one record a tensor, and before torch 1.6
    five pickles in a row followed by the tensors.
"""

import io
import os
import pickle
import pickletools
import struct
import warnings
import zipfile
from pathlib import Path
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
_LARGEST_PICKLE = 64 << 20  # names and shapes of a large network take a few MB
_LARGEST_MEMO = (
    1 << 20
)  # a pickle may number what it remembers as it likes, and memory is reserved up to there

_INSTRUCTIONS = {
    *(
        "PROTO",
        "STOP",
        "MARK",
        "EMPTY_DICT",
        "EMPTY_LIST",
        "EMPTY_TUPLE",
        "TUPLE",
        "TUPLE1",
        "TUPLE2",
        "TUPLE3",
    ),
    *(
        "SETITEM",
        "SETITEMS",
        "APPEND",
        "APPENDS",
        "NONE",
        "NEWTRUE",
        "NEWFALSE",
        "BININT",
        "BININT1",
        "BININT2",
    ),
    *("LONG1", "BINFLOAT", "BINUNICODE", "BINPUT", "LONG_BINPUT", "BINGET", "LONG_BINGET"),
    *("BINPERSID", "GLOBAL", "REDUCE", "BUILD"),
}


class _Storage(NamedTuple):
    """A run of numbers in the file, by its key."""

    key: str
    dtype: np.dtype
    size: int


class _Tensor(NamedTuple):
    """A view of a storage, as the file describes it: nothing here is checked yet."""

    storage: Any
    offset: Any
    shape: Any
    strides: Any


class _Mapping(dict):
    """An ordered dict of the file. What torch would hang on it as attributes is dropped."""

    def __setstate__(self, state: Any) -> None:
        pass


class _DType(NamedTuple):
    """The dtype that the class of a storage stands for; not callable, so the file cannot call it."""

    dtype: np.dtype


def _tensor(storage, offset, shape, strides, *_) -> _Tensor:
    return _Tensor(storage, offset, shape, strides)


def _parameter(tensor, *_) -> Any:
    return tensor


def _mapping() -> _Mapping:
    return _Mapping()


_STORAGES = {
    "FloatStorage": np.float32,
    "DoubleStorage": np.float64,
    "HalfStorage": np.float16,
    "BFloat16Storage": ml_dtypes.bfloat16,
    "LongStorage": np.int64,
    "IntStorage": np.int32,
    "ShortStorage": np.int16,
    "CharStorage": np.int8,
    "ByteStorage": np.uint8,
    "BoolStorage": np.bool_,
}
_NAMES: dict[tuple[str, str], Any] = {
    ("collections", "OrderedDict"): _mapping,
    ("torch._utils", "_rebuild_tensor_v2"): _tensor,
    ("torch._utils", "_rebuild_parameter"): _parameter,
    **{("torch", name): _DType(np.dtype(dtype)) for name, dtype in _STORAGES.items()},
}


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        try:
            return _NAMES[module, name]
        except KeyError:
            raise pickle.UnpicklingError(f"{module}.{name} is not allowed") from None

    def persistent_load(self, pid: Any) -> _Storage:
        kind, (dtype,), key, _, size = pid[:5]
        view = pid[5] if len(pid) > 5 else None
        if kind != "storage" or view is not None or not isinstance(dtype, np.dtype):
            raise pickle.UnpicklingError(f"a persistent entry {kind!r} is no plain storage")
        return _Storage(str(key), dtype, int(size))


def read_state_dict(file: str | os.PathLike) -> dict[str, np.ndarray]:
    """The tensors of a state dict by name, in the file's order, as NumPy arrays of the dtypes stored.

    Args:
        file: what `torch.save(network.state_dict(), file)` wrote, by any version of torch.

    Raises:
        FileNotFoundError: no such file.
        ValueError: a file that is none, is truncated or damaged, holds something else than names and tensors, or
            asks for code to be run; nothing of it is run then.
    """
    file = Path(file)
    try:
        # the standard library's own parser warns of odd escapes in strings that are refused right after
        with file.open("rb") as stream, warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            read = _read_archive if stream.read(4) == b"PK\x03\x04" else _read_legacy
            stream.seek(0)
            root, storages = read(stream)
        return _arrays(root, storages)
    except _Refused as refused:
        raise ValueError(f"{file}: {refused}") from None
    # every way in which a short or damaged file shows: in the archive, in the pickle, in the shapes
    except (
        *(zipfile.BadZipFile, pickle.UnpicklingError, EOFError, UnicodeDecodeError, NotImplementedError),
        *(ValueError, TypeError, KeyError, IndexError, AttributeError, OverflowError, struct.error),
    ) as error:
        raise ValueError(
            f"{file} is no whole file of torch.save: {error}; it may be truncated, download it again"
        ) from None


class _Refused(Exception):
    """A file that was understood and is not wanted."""


def _read_archive(stream) -> tuple[Any, dict[str, bytes]]:
    """The layout since torch 1.6: `NAME/data.pkl`, and `NAME/data/KEY` for every storage, all uncompressed."""
    with zipfile.ZipFile(stream) as archive:
        names = set(archive.namelist())
        pickles = [name for name in names if name.count("/") == 1 and name.endswith("/data.pkl")]
        if len(pickles) != 1:
            raise _Refused("a zip archive without the data.pkl of torch.save; give the weights file itself")
        if any(info.compress_type != zipfile.ZIP_STORED for info in archive.infolist()):
            raise _Refused(
                "its records are compressed, which torch.save never does; save it with torch again"
            )
        prefix = pickles[0].removesuffix("data.pkl")
        if prefix + "byteorder" in names and archive.read(prefix + "byteorder") != b"little":
            raise _Refused("its numbers are big-endian; save it on a little-endian machine")
        root = _load(io.BytesIO(archive.read(pickles[0])))
        data = prefix + "data/"
        keys = [name for name in names if name.startswith(data)]
        return root, {name.removeprefix(data): archive.read(name) for name in keys}


def _read_legacy(stream) -> tuple[Any, dict[str, bytes]]:
    """The layout before: magic number, protocol, machine, state dict, keys; then size and numbers of each storage."""
    content = io.BytesIO(stream.read())
    if _load(content) != _LEGACY_MAGIC:
        raise _Refused("it does not begin as a file of torch.save")
    _load(content)
    if not _load(content)["little_endian"]:
        raise _Refused("its numbers are big-endian; save it on a little-endian machine")
    root = _load(content)
    widths = {tensor.storage.key: tensor.storage.dtype.itemsize for tensor in _tensors(root).values()}
    storages = {}
    for key in _load(content):
        (size,) = struct.unpack("<q", content.read(8))
        length = size * widths[key]
        if not 0 <= length <= len(content.getbuffer()) - content.tell():
            raise EOFError(f"storage {key} should have {length} bytes")
        storages[key] = content.read(length)
    return root, storages


def _load(stream: io.BytesIO) -> Any:
    """One pickle from where the stream stands, after its instructions were looked through."""
    start = stream.tell()
    for instruction, argument, position in pickletools.genops(stream):
        if position is not None and position - start > _LARGEST_PICKLE:
            raise _Refused(
                f"its pickle is larger than {_LARGEST_PICKLE >> 20} MB, more than names and shapes take"
            )
        if instruction.name == "GLOBAL":
            module, _, name = str(argument).partition(" ")
            if (module, name) not in _NAMES:
                raise _Refused(
                    f"its pickle asks for {module}.{name}, which no state dict needs; nothing of it was run. "
                    "Save network.state_dict(), not the network, and trust no other file"
                )
        elif instruction.name not in _INSTRUCTIONS:
            raise _Refused(
                f"its pickle has the instruction {instruction.name}, which torch.save does not write; "
                "nothing of it was run"
            )
        elif instruction.name == "LONG_BINPUT" and int(argument or 0) > _LARGEST_MEMO:
            raise _Refused("its pickle reserves memory without end; nothing of it was run")
    stream.seek(start)
    return _Unpickler(stream).load()


def _tensors(root: Any) -> dict[str, _Tensor]:
    if not isinstance(root, dict) or not all(isinstance(name, str) for name in root):
        raise _Refused("it holds no state dict of names and tensors; save network.state_dict()")
    for name, value in root.items():
        if not isinstance(value, _Tensor) or not isinstance(value.storage, _Storage):
            raise _Refused(f"its entry {name!r} is no tensor; save network.state_dict()")
    return root


def _arrays(root: Any, storages: dict[str, bytes]) -> dict[str, np.ndarray]:
    arrays = {}
    for name, (storage, offset, shape, strides) in _tensors(root).items():
        numbers = np.frombuffer(storages[storage.key], storage.dtype)
        shape, strides = tuple(map(int, shape)), tuple(map(int, strides))
        entries = int(np.prod(shape, dtype=object))
        reach = int(offset) + sum((n - 1) * step for n, step in zip(shape, strides, strict=True)) + 1
        # a view inside its storage that repeats nothing: a few bytes cannot unfold to gigabytes
        if min(shape, default=1) < 1 or min(strides, default=0) < 0 or not 0 <= int(offset) < reach:
            raise ValueError(f"tensor {name} has the shape {shape}, strides {strides} and offset {offset}")
        if max(reach, entries) > len(numbers):
            raise ValueError(f"tensor {name} of shape {shape} reaches beyond its {len(numbers)} numbers")
        steps = tuple(step * storage.dtype.itemsize for step in strides)
        arrays[name] = np.lib.stride_tricks.as_strided(numbers[int(offset) :], shape, steps).copy()
    return arrays
