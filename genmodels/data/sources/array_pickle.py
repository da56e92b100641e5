"""Pickles of arrays of bytes, read without running anything that they name."""

from __future__ import annotations

import io
import math
import pickle
from typing import Any


class _Type:
    """Stands for numpy's dtype; knows its code alone."""

    code: object = None

    def __init__(self, code: object = None, *_: object):
        self.code = code

    def __setstate__(self, state: object) -> None:
        """Byte order and the like; bytes have none."""


class ByteArray:
    """Stands for numpy's array of unsigned bytes: its shape and values."""

    shape: tuple[int, ...] = ()
    values = b""

    def __init__(self, *_: object):
        """What numpy is given here says nothing yet."""

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        version, shape, kind, by_columns, values = state
        plain = isinstance(shape, tuple) and all(type(side) is int and side >= 0 for side in shape)
        if not plain or not isinstance(kind, _Type) or kind.code not in ("u1", b"u1") or by_columns:
            raise pickle.UnpicklingError("an array of other values than bytes in rows")
        if not isinstance(values, bytes) or len(values) != math.prod(shape):
            raise pickle.UnpicklingError("an array of another size than it says")
        self.shape, self.values = shape, values


class _Encoded:
    """Stands for _codecs.encode, as Python 3 writes bytes for Python 2."""

    def __new__(cls, text: str, code: str) -> bytes:  # type: ignore[misc]
        if code not in ("latin1", "latin-1"):
            raise pickle.UnpicklingError(f"text in {code!r}")
        return text.encode("latin1")

    def __setstate__(self, state: object) -> None:
        """Without it a pickle could set the class's own attributes."""


GLOBALS: dict[tuple[str, str], Any] = {
    ("numpy.core.multiarray", "_reconstruct"): ByteArray,
    ("numpy._core.multiarray", "_reconstruct"): ByteArray,
    ("numpy", "ndarray"): "ndarray",  # an argument of the one above, which needs none
    ("numpy", "dtype"): _Type,
    ("_codecs", "encode"): _Encoded,
}


class _Unpickler(pickle._Unpickler):
    """The implementation in Python: the one in C makes room for whatever number a few bytes name."""

    dispatch = {code: load for code, load in pickle._Unpickler.dispatch.items() if code != pickle.BYTEARRAY8[0]}

    def find_class(self, module: str, name: str) -> Any:
        """Nothing is imported: what the pickle names is one of our own stand-ins, or refused."""
        if (module, name) not in GLOBALS:
            raise pickle.UnpicklingError(f"the pickle asks for {module}.{name}, which is refused"[:200])
        return GLOBALS[module, name]


def load_arrays(data: bytes, where: str) -> dict[str, Any]:
    """A pickled mapping of names to numbers, text, lists and arrays of bytes; `where` names it in messages.

    ValueError of one line for anything else, naming what was asked for; nothing of it was imported or called.
    """
    try:
        found = _Unpickler(io.BytesIO(data), encoding="bytes").load()
        if not isinstance(found, dict):
            raise pickle.UnpicklingError("no mapping")
        return {as_text(key): value for key, value in found.items()}
    except Exception as error:  # hostile pickles raise whatever they like
        what = ascii(str(error) or type(error).__name__)[1:-1]
        raise ValueError(f"{where}: {what}") from None


def as_text(value: object) -> str:
    """A string, or the bytes that Python 2 called one. ValueError for anything else."""
    if isinstance(value, bytes):
        return value.decode()
    if not isinstance(value, str):
        raise ValueError(f"{type(value).__name__} where text belongs")
    value.encode()
    return value
