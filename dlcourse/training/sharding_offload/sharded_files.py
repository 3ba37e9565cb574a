"""Loading a model that fits into no single memory: files in shards, and a device without storage.

A safetensors file is 8 bytes with the length of a header, the header (JSON: name, dtype, shape,
where the bytes begin and end), and the bytes. So a reader finds one tensor without touching the
others, and no code runs as it may in a pickle. An index beside the files says which tensor is in
which file:

    model-00001-of-00003.safetensors ...   model.safetensors.index.json

A module that was built under ``torch.device("meta")`` has shapes and no numbers. ``load_module``
fills in its tensors, and reads nothing else.

Source: the format's own description, https://github.com/huggingface/safetensors. The package
``safetensors`` does the same; it is not needed here.
"""

from __future__ import annotations

import json
import mmap
import os
from collections.abc import Mapping, Sequence
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


def save_file(tensors: Mapping[str, Tensor], path: Path) -> None:
    """Write one safetensors file. An older one in its place is replaced when this one is whole.

    Raises:
        ValueError: a tensor that the format does not know, or that has no numbers.
    """
    header, start = {}, 0
    for name, tensor in tensors.items():
        check_tensor(name, tensor)
        end = start + tensor.nbytes
        header[name] = {
            "dtype": NAMES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [start, end],
        }
        start = end
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)  # so that the numbers begin at a multiple of 8
    part = path.with_name(f"{path.name}.part")  # somebody may have the older file mapped
    with part.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for tensor in tensors.values():
            row = tensor.detach().cpu().resolve_conj().resolve_neg().contiguous().flatten()
            file.write(row.view(torch.uint8).numpy())
    part.replace(path)


def check_tensor(name: str, tensor: Any) -> None:
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


def save_shards(model: nn.Module, folder: Path, groups: Sequence[Sequence[str]]) -> None:
    """One file for each group of names, and the index.

    Args:
        groups: names of ``model.state_dict()``; each of them once.

    Raises:
        ValueError: other names, or a tensor that cannot be saved; before anything is written.
    """
    state, where = model.state_dict(), {}
    if sorted(name for group in groups for name in group) != sorted(state):
        raise ValueError("groups: give each name of model.state_dict() in one group")
    for name, tensor in state.items():
        check_tensor(name, tensor)
    (folder / INDEX).unlink(missing_ok=True)  # written last: until then this is no checkpoint
    for number, group in enumerate(groups, start=1):
        file = f"model-{number:05}-of-{len(groups):05}.safetensors"
        save_file({name: state[name] for name in group}, folder / file)
        where |= dict.fromkeys(group, file)
    total = sum(tensor.nbytes for tensor in state.values())
    index = {"metadata": {"total_size": total}, "weight_map": where}
    (folder / f"{INDEX}.part").write_text(json.dumps(index, indent=1))
    os.replace(folder / f"{INDEX}.part", folder / INDEX)


class File:
    """A safetensors file, mapped: a tensor's bytes are read when somebody looks at them.

    Raises:
        ValueError: the file is not whole.
    """

    def __init__(self, path: Path) -> None:
        self.name, size = path.name, path.stat().st_size
        with path.open("rb") as file:  # an empty file cannot be mapped
            self.bytes = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) if size else b""
        length = int.from_bytes(self.bytes[:8], "little")
        self.start = 8 + length
        try:
            self.header = json.loads(self.bytes[8 : self.start]) if self.start <= size else {}
            self.header.pop("__metadata__", None)
            ends = [self._span(name)[1] for name in self.header]
        except (ValueError, TypeError, KeyError, AttributeError):
            raise ValueError(
                f"{path.name} has a header that cannot be read: it is not a safetensors file, or "
                "was damaged; copy or download it again"
            ) from None
        end = max(ends, default=self.start)
        if size != end:
            raise ValueError(
                f"{path.name} has {size} bytes and its header says {end}: "
                "it is not a whole safetensors file; copy or download it again"
            )

    def _span(self, name: str) -> tuple[int, int]:
        """Where a tensor's bytes are in the file."""
        begin, end = self.header[name]["data_offsets"]
        if not 0 <= begin <= end:
            raise ValueError
        return self.start + begin, self.start + end

    def raw(self, name: str) -> memoryview:
        begin, end = self._span(name)
        return memoryview(self.bytes)[begin:end]

    def read(self, name: str) -> Tensor:
        """A copy of one tensor, in memory of its own.

        Raises:
            ValueError: it is not there, has a type that we do not know, or too few bytes.
        """
        entry = self.header.get(name)
        if entry is None:
            raise ValueError(f"{name} is not in {self.name}, which has {', '.join(self.header)}")
        if entry["dtype"] not in DTYPES:
            raise ValueError(
                f"{name} in {self.name} has dtype {entry['dtype']}, and known are "
                f"{', '.join(DTYPES)}: convert it with the program that wrote it"
            )
        shape, dtype = entry["shape"], DTYPES[entry["dtype"]]
        tensor, raw = torch.empty(shape, dtype=dtype), self.raw(name)
        if tensor.nbytes != len(raw):
            raise ValueError(f"{name}: {len(raw)} bytes for shape {shape} in {dtype}")
        tensor.flatten().view(torch.uint8).numpy()[:] = raw
        return tensor


def load_module(module: nn.Module, folder: Path, device: torch.device | str = "cpu") -> int:
    """Give a module on the meta device its tensors: those that it has, read from their files.

    They get the module's types. A tensor with two names (tied embeddings) may be in a file under
    one of them.

    Returns:
        Bytes read.

    Raises:
        ValueError: a tensor is in no file, or has another shape there; two names of one tensor
            have different numbers; a buffer is in no file because it is not persistent. Before
            anything is changed.
    """
    where, files = read_index(folder), {}
    wanted = module.state_dict(keep_vars=True)
    check_buffers(module, wanted)
    names: dict[Tensor, list[str]] = {}  # of each tensor
    for name, tensor in wanted.items():
        names.setdefault(tensor, []).append(name)
    loaded, num_bytes = {}, 0
    for tensor, all_names in names.items():
        saved = [name for name in all_names if name in where]
        if not saved:
            raise ValueError(
                f"{all_names[0]} is in no file of {folder.name}: build the model with the "
                "configuration that was saved"
            )
        for name in saved:
            if where[name] not in files:
                files[where[name]] = File(folder / where[name])
            check_entry(files[where[name]], name, tensor)
        for other in saved[1:]:
            if files[where[other]].raw(other) != files[where[saved[0]]].raw(saved[0]):
                raise ValueError(
                    f"{saved[0]} and {other} are one tensor in the module, and have different "
                    f"numbers in {folder.name}: build the model without tied parameters"
                )
        new = files[where[saved[0]]].read(saved[0])
        num_bytes += new.nbytes
        new = new.to(device, tensor.dtype)
        if isinstance(tensor, nn.Parameter):
            new = nn.Parameter(new, requires_grad=tensor.requires_grad)
        loaded |= dict.fromkeys(all_names, new)
    module.load_state_dict(loaded, assign=True)  # the meta tensors make way
    return num_bytes


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


def check_entry(file: File, name: str, wanted: Tensor) -> None:
    entry = file.header.get(name)
    shape = None if entry is None else tuple(entry["shape"])
    if shape != wanted.shape:
        raise ValueError(
            f"{name} has shape {shape} in {file.name} and {tuple(wanted.shape)} in the module: "
            "build the model with the configuration that was saved"
        )
    dtype = DTYPES.get(entry["dtype"], wanted.dtype)  # read() refuses one that it does not know
    if dtype.is_floating_point != wanted.is_floating_point():
        raise ValueError(
            f"{name} has dtype {entry['dtype']} in {file.name} and {wanted.dtype} in the module: "
            "quantized numbers, say, mean something else; build the module with that type"
        )
