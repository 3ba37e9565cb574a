"""What sharded files must be like: every refusal is a ValueError, before anything is changed."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

INDEX = "model.safetensors.index.json"
DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
DTYPES |= {"I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8}
DTYPES |= {"U64": torch.uint64, "U32": torch.uint32, "U16": torch.uint16, "U8": torch.uint8}
DTYPES |= {"F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2}
DTYPES |= {"BOOL": torch.bool, "C64": torch.complex64}
NAMES = {dtype: name for name, dtype in DTYPES.items()}


def check_tensor(name: str, tensor: Any) -> None:
    """A tensor must be one that the format knows."""
    if not isinstance(tensor, Tensor):
        what = f"is a {type(tensor).__name__}: give tensors alone"
    elif tensor.is_meta or tensor.layout != torch.strided:
        what = f"is on {tensor.device}, {tensor.layout}: give it numbers, and make it dense"
    elif tensor.dtype not in NAMES:
        what = f"is {tensor.dtype}: the format knows {', '.join(map(str, NAMES))}"
    elif name == "__metadata__":
        what = "has a name that the format keeps for itself: give it another one"
    else:
        return
    raise ValueError(f"{name} cannot be saved, as it {what}")


@contextmanager
def check_header(path: Path) -> Iterator[None]:
    """A header must be what the format says; what is read of it goes inside."""
    try:
        yield
    except (ValueError, TypeError, KeyError, AttributeError):
        raise ValueError(
            f"{path.name} has a header that cannot be read: it is not a safetensors file, or "
            "was damaged; copy or download it again"
        ) from None


def check_whole(path: Path, end: int) -> None:
    """A file must end where its header says."""
    size = path.stat().st_size
    if size != end:
        raise ValueError(
            f"{path.name} has {size} bytes and its header says {end}: "
            "it is not a whole safetensors file; copy or download it again"
        )


def check_readable(file: str, header: Mapping[str, Any], name: str) -> None:
    """A tensor must be in the file, in a type that we know."""
    if name not in header:
        raise ValueError(f"{name} is not in {file}, which has {', '.join(header)}")
    if header[name]["dtype"] not in DTYPES:
        raise ValueError(
            f"{name} in {file} has dtype {header[name]['dtype']}, and known are "
            f"{', '.join(DTYPES)}: convert it with the program that wrote it"
        )


def check_saved(names: Sequence[str], saved: Sequence[str], folder: Path) -> None:
    """One of a tensor's names must be in a file."""
    if not saved:
        raise ValueError(
            f"{names[0]} is in no file of {folder.name}: build the model with the "
            "configuration that was saved"
        )


def check_equal(raw: Mapping[str, memoryview], folder: Path) -> None:
    """Names of one tensor must have the same bytes in the files."""
    first, *others = raw
    for other in others:
        if raw[other] != raw[first]:
            raise ValueError(
                f"{first} and {other} are one tensor in the module, and have different "
                f"numbers in {folder.name}: build the model without tied parameters"
            )


def read_index(folder: Path) -> dict[str, str]:
    """The file of each tensor."""
    try:
        where = json.loads((folder / INDEX).read_text())["weight_map"]
        missing = [file for file in where.values() if not (folder / file).is_file()]
    except FileNotFoundError:
        raise ValueError(
            f"folder={str(folder)!r} has no {INDEX}, which is written last: give a folder that "
            "save_shards has filled"
        ) from None
    except (ValueError, KeyError, TypeError, AttributeError):
        raise ValueError(
            f"{INDEX} in folder={str(folder)!r} cannot be read: copy or download it again"
        ) from None
    if missing:
        raise ValueError(f"{missing[0]} of {INDEX} is not in folder={str(folder)!r}: copy it again")
    return where


def check_buffers(module: nn.Module, state: Mapping[str, Any]) -> None:
    """A module must be made whole by its state dict alone."""
    for name, tensor in state.items():
        if not isinstance(tensor, Tensor):
            raise ValueError(f"{name} is a {type(tensor).__name__}, and files hold tensors alone")
    lost = [name for name, b in module.named_buffers() if b.is_meta and name not in state]
    if lost:
        raise ValueError(
            f"{', '.join(lost)}: registered with persistent=False, so it is in no file, and on the "
            "meta device it has no numbers: assign it a tensor on the device before you load, or "
            "register it as persistent and save it"
        )


def check_entry(file: str, header: Mapping[str, Any], name: str, wanted: Tensor) -> None:
    """A tensor of a file must fit the module's."""
    entry = header.get(name)
    shape = None if entry is None else tuple(entry["shape"])
    if entry is None or shape != wanted.shape:
        raise ValueError(
            f"{name} has shape {shape} in {file} and {tuple(wanted.shape)} in the module: "
            "build the model with the configuration that was saved"
        )
    dtype = DTYPES.get(entry["dtype"], wanted.dtype)  # read() refuses one that it does not know
    if dtype.is_floating_point != wanted.is_floating_point():
        raise ValueError(
            f"{name} has dtype {entry['dtype']} in {file} and {wanted.dtype} in the module: "
            "quantized numbers, say, mean something else; build the module with that type"
        )
