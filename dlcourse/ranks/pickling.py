"""Results on their way from a rank to the notebook, which reads them without torch."""

from __future__ import annotations

import io
import pickle
import sys
from typing import Any

import cloudpickle

from dlcourse.ranks.display import in_words
from dlcourse.ranks.errors import RankError


class Unpicklable:
    """Stands in the notebook for an object that can only live in a rank; shows its repr."""

    def __init__(self, text: str) -> None:
        self.text = text

    def __repr__(self) -> str:
        return self.text


class _Pickler(cloudpickle.Pickler):
    """Pickles results so that the notebook kernel needs no torch to read them.

    Tensors become NumPy arrays (bfloat16 and smaller floats as float32, complex32
    as complex64), torch's own objects
    (devices, dtypes, modules …) their repr. Functions and classes of cells travel by value.
    """

    def reducer_override(self, obj: Any) -> Any:
        torch = sys.modules.get("torch")
        if torch is None:
            return super().reducer_override(obj)
        if isinstance(obj, torch.Tensor):
            tensor = obj.detach().cpu().resolve_conj().resolve_neg()  # NumPy has no such views
            if tensor.dtype.is_floating_point and tensor.element_size() < 4:
                tensor = tensor.float()
            elif tensor.dtype == torch.complex32:
                tensor = tensor.to(torch.complex64)
            return tensor.numpy().__reduce__()
        in_torch = type(obj).__module__.partition(".")[0] == "torch"
        if in_torch or isinstance(obj, torch.nn.Module):
            return Unpicklable, (in_words(obj),)
        return super().reducer_override(obj)


def dumps_result(value: Any) -> bytes:
    """Pickle a rank's result for the kernel; what cannot be pickled travels as its repr."""
    buffer = io.BytesIO()
    try:
        _Pickler(buffer, protocol=5).dump(value)
    except Exception:
        return pickle.dumps(Unpicklable(in_words(value)))
    return buffer.getvalue()


def loads_result(value: bytes, rank: int, what: str) -> Any:
    """A value that a rank sent; RankError where this process cannot make it."""
    try:
        return pickle.loads(value)
    except Exception as error:
        raise RankError(
            f"{what} of rank {rank} cannot be read in the notebook: "
            f"{type(error).__name__}: {error}. Send numbers, text, lists or tensors instead."
        ) from error
