"""Files in the two layouts of torch.save, written without torch: what a state dict looks like and what it must not."""

import contextlib
import io
import pickle
import struct
import sys
import types
import zipfile

import numpy as np

_STORAGES = {"float32": "FloatStorage", "int64": "LongStorage", "float64": "DoubleStorage"}


def _stand_ins():
    """Modules named as torch's, whose names pickle writes into the file."""
    torch, utils = types.ModuleType("torch"), types.ModuleType("torch._utils")
    for name in _STORAGES.values():
        setattr(torch, name, type(name, (), {"__module__": "torch"}))
    exec("def _rebuild_tensor_v2(*arguments): raise NotImplementedError", vars(utils))
    utils._rebuild_tensor_v2.__module__ = "torch._utils"
    return {"torch": torch, "torch._utils": utils}


class _Tensor:
    def __init__(self, key, array, modules):
        self.key, self.array, self.modules = key, array, modules

    def __reduce__(self):
        shape = self.array.shape
        strides = tuple(step // self.array.itemsize for step in self.array.strides)
        return self.modules["torch._utils"]._rebuild_tensor_v2, (_Storage(self), 0, shape, strides, False, {})


class _Storage:
    def __init__(self, tensor):
        self.tensor = tensor


class _Pickler(pickle.Pickler):
    def __init__(self, stream, legacy):
        super().__init__(stream, protocol=2)
        self.legacy = legacy

    def persistent_id(self, obj):
        if not isinstance(obj, _Storage):
            return None
        tensor = obj.tensor
        kind = getattr(tensor.modules["torch"], _STORAGES[tensor.array.dtype.name])
        return ("storage", kind, tensor.key, "cpu", tensor.array.size, *((None,) if self.legacy else ()))


def _pickled(root, legacy):
    stream = io.BytesIO()
    _Pickler(stream, legacy).dump(root)
    return stream.getvalue()


@contextlib.contextmanager
def _registered(modules):
    before = {name: sys.modules.get(name) for name in modules}
    sys.modules.update(modules)
    try:
        yield
    finally:
        for name, module in before.items():
            if module is None:
                del sys.modules[name]
            else:
                sys.modules[name] = module


def write_torch_file(file, state, *, legacy=False):
    """`state`: arrays by name, and anything else that pickle takes, in the layout since torch 1.6 or the one before."""
    modules = _stand_ins()
    arrays = {
        str(i): np.asarray(v, order="C") for i, v in enumerate(state.values()) if isinstance(v, np.ndarray)
    }
    root = {
        name: _Tensor(str(i), arrays[str(i)], modules) if str(i) in arrays else value
        for i, (name, value) in enumerate(state.items())
    }
    with _registered(modules):
        program = _pickled(root, legacy)
    if legacy:
        head = [0x1950A86A20F9469CFC6C, 1001, {"little_endian": True}]
        parts = [pickle.dumps(part, 2) for part in head]
        parts += [program, pickle.dumps(list(arrays), 2)]
        for array in arrays.values():
            parts += [struct.pack("<q", array.size), array.tobytes()]
        file.write_bytes(b"".join(parts))
        return
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("weights/data.pkl", program)
        archive.writestr("weights/byteorder", "little")
        for key, array in arrays.items():
            archive.writestr(f"weights/data/{key}", array.tobytes())
