"""Read `.npy` files that hold pickles (dicts of arrays, as WSSS code saves them) without running what is in them.

A pickle may name any callable and have it called. Here only the few that rebuild numpy arrays, scalars and plain
containers exist; every other name is refused. Source: "Restricting globals" in the documentation of `pickle`.
"""

from __future__ import annotations

import collections
import io
import pickle
from typing import Any

import numpy as np


class _ArrayType:
    """Stands for numpy.ndarray, which a pickle may name and pass on but not call."""


def _empty_array(kind: Any, shape: Any, typecode: Any) -> np.ndarray:
    """What numpy's own `_reconstruct` gives a pickle of an array to fill."""
    if kind is not _ArrayType:
        raise pickle.UnpicklingError("only plain numpy arrays are admitted")
    return np.ndarray.__new__(np.ndarray, (0,), np.int8)


def _latin1(text: str, encoding: str) -> bytes:
    """How protocol 2 writes bytes; other encodings would have Python import modules by name."""
    if encoding != "latin1":
        raise pickle.UnpicklingError(f"encoding {encoding!r} is not admitted")
    return text.encode("latin1")


def _scalar(dtype: np.dtype, content: bytes) -> Any:
    """A numpy scalar from its bytes; the library's own function would also take objects."""
    if dtype.hasobject:
        raise pickle.UnpicklingError("numpy scalars of objects are not admitted")
    return np.frombuffer(content, dtype, count=1)[0]


def _filled_array(content: bytes, dtype: np.dtype, shape: tuple[int, ...], order: str) -> np.ndarray:
    """An array from its bytes (protocol 5)."""
    return np.frombuffer(content, dtype).reshape(shape, order="F" if order == "F" else "C").copy()


_ADMITTED: dict[tuple[str, str], Any] = {
    ("numpy", "ndarray"): _ArrayType,
    ("numpy", "dtype"): np.dtype,
    ("_codecs", "encode"): _latin1,
    ("collections", "OrderedDict"): collections.OrderedDict,
}
for _module in ("numpy.core.multiarray", "numpy._core.multiarray"):  # before and since numpy 2
    _ADMITTED[_module, "_reconstruct"] = _empty_array
    _ADMITTED[_module, "scalar"] = _scalar
for _module in ("numpy.core.numeric", "numpy._core.numeric"):
    _ADMITTED[_module, "_frombuffer"] = _filled_array


class _Unpickler(pickle.Unpickler):
    def find_class(self, module_name: str, global_name: str) -> Any:
        try:
            return _ADMITTED[module_name, global_name]
        except KeyError:
            raise pickle.UnpicklingError(f"it names {module_name}.{global_name}") from None


def load_npy(content: bytes) -> Any:
    """Read a `.npy` file: an array of numbers, or (as `np.save` writes a dict) what its pickle holds.

    Args:
        content: The file's bytes.

    Returns:
        An array; or, where the file holds a single object, that object.

    Raises:
        ValueError: If it is no `.npy` file, is truncated, or its pickle names anything but arrays and containers.
    """
    stream = io.BytesIO(content)
    try:
        version = np.lib.format.read_magic(stream)
        read_header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        _, _, dtype = read_header(stream)
        if not dtype.hasobject:
            return np.load(io.BytesIO(content), allow_pickle=False)
        loaded = _Unpickler(stream, encoding="latin1").load()
    except Exception as error:  # a hostile pickle can make any constructor fail in any way
        raise ValueError(f"no .npy file of arrays and plain containers ({error})") from error
    return loaded.item() if isinstance(loaded, np.ndarray) and loaded.shape == () else loaded
