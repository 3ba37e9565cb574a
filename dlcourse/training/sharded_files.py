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
import math
import mmap
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

INDEX = "model.safetensors.index.json"
DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
DTYPES |= {"I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8}
DTYPES |= {"U64": torch.uint64, "U32": torch.uint32, "U16": torch.uint16, "U8": torch.uint8}
DTYPES |= {"BOOL": torch.bool, "C64": torch.complex64}
DTYPES |= {"F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2}
NAMES = {dtype: name for name, dtype in DTYPES.items()}


def save_file(tensors: Mapping[str, Tensor], path: Path) -> None:
    """Write one safetensors file.

    Raises:
        ValueError: a tensor of a type that the format does not know, or without numbers.
    """
    header, start = {}, 0
    for name, tensor in tensors.items():
        if tensor.dtype not in NAMES or tensor.is_meta or tensor.layout != torch.strided:
            kind = "on the meta device" if tensor.is_meta else f"{tensor.layout}, {tensor.dtype}"
            raise ValueError(
                f"{name} is {kind}: a safetensors file holds dense tensors with numbers, of "
                f"{', '.join(DTYPES)}; convert it first"
            )
        end = start + tensor.nbytes
        header[name] = {
            "dtype": NAMES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [start, end],
        }
        start = end
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)  # so that the numbers begin at a multiple of 8
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for tensor in tensors.values():
            file.write(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())


def save_shards(model: nn.Module, folder: Path, groups: Sequence[Sequence[str]]) -> None:
    """One file for each group of names, and the index.

    Args:
        groups: names of ``model.state_dict()``; each of them once.
    """
    state, where = model.state_dict(), {}
    if sorted(name for group in groups for name in group) != sorted(state):
        raise ValueError("groups: give each name of model.state_dict() in one group")
    for number, group in enumerate(groups, start=1):
        file = f"model-{number:05}-of-{len(groups):05}.safetensors"
        save_file({name: state[name] for name in group}, folder / file)
        where |= dict.fromkeys(group, file)
    total = sum(tensor.nbytes for tensor in state.values())
    index = {"metadata": {"total_size": total}, "weight_map": where}
    (folder / INDEX).write_text(json.dumps(index, indent=1))


class File:
    """A safetensors file, mapped: a tensor's bytes are read when somebody looks at them.

    Raises:
        ValueError: the file is not whole.
    """

    def __init__(self, path: Path) -> None:
        with path.open("rb") as file:
            self.bytes = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        length = int.from_bytes(self.bytes[:8], "little")
        whole = 8 + length <= len(self.bytes)
        self.header = json.loads(self.bytes[8 : 8 + length]) if whole else {}
        self.header.pop("__metadata__", None)
        self.start = 8 + length
        size = max((entry["data_offsets"][1] for entry in self.header.values()), default=0)
        if not whole or len(self.bytes) != self.start + size:
            raise ValueError(
                f"{path.name} has {len(self.bytes)} bytes and its header says {self.start + size}: "
                "it is not a whole safetensors file; copy or download it again"
            )

    def read(self, name: str) -> Tensor:
        """A copy of one tensor, in memory of its own."""
        if name not in self.header:
            raise ValueError(f"{name} is not in this file, which has {', '.join(self.header)}")
        entry = self.header[name]
        if entry["dtype"] not in DTYPES:
            raise ValueError(
                f"{name} has the type {entry['dtype']}, which is none of {', '.join(DTYPES)}"
            )
        shape, dtype = entry["shape"], DTYPES[entry["dtype"]]
        begin, end = (self.start + offset for offset in entry["data_offsets"])
        tensor = torch.empty(shape, dtype=dtype)
        if tensor.nbytes != end - begin:
            raise ValueError(f"{name}: {end - begin} bytes for shape {shape} in {dtype}")
        tensor.flatten().view(torch.uint8).numpy()[:] = memoryview(self.bytes)[begin:end]
        return tensor


def load_module(module: nn.Module, folder: Path, device: torch.device | str = "cpu") -> int:
    """Give a module on the meta device its tensors: those that it has, read from their files.

    Returns:
        Bytes read.

    Raises:
        ValueError: a tensor is in no file, or has another shape there; or a buffer that is not
            saved (``persistent=False``) is on the meta device, where its numbers are lost.
    """
    refuse_lost_buffers(module)
    where = json.loads((folder / INDEX).read_text())["weight_map"]
    files, loaded = {}, {}
    tied: dict[Tensor, Tensor] = {}  # a tensor with two names is read once, and stays one
    state = module.state_dict(keep_vars=True)
    names: dict[Tensor, list[str]] = {}
    for name, wanted in state.items():
        names.setdefault(wanted, []).append(name)
    for own_name, wanted in state.items():
        if wanted in tied:
            loaded[own_name] = tied[wanted]
            continue
        # Of the names of a tied tensor, files may have any one
        name = next((n for n in names[wanted] if n in where), own_name)
        if name not in where:
            raise ValueError(
                f"{name} is in no file of {folder.name}: build the model with the configuration "
                "that was saved"
            )
        if where[name] not in files:
            files[where[name]] = File(folder / where[name])
        file = files[where[name]]
        if name not in file.header:
            raise ValueError(f"the index says that {name} is in {where[name]}, and it is not there")
        shape = tuple(file.header[name]["shape"])
        if shape != wanted.shape:
            raise ValueError(
                f"{name} has shape {shape} in {where[name]} and {tuple(wanted.shape)} in the "
                "module: build the model with the configuration that was saved"
            )
        tensor = file.read(name).to(device)
        if isinstance(wanted, nn.Parameter):
            tensor = nn.Parameter(tensor, requires_grad=wanted.requires_grad)
        loaded[own_name] = tied[wanted] = tensor
    module.load_state_dict(loaded, assign=True)  # the meta tensors make way
    return sum(math.prod(t.shape) * t.itemsize for t in tied.values())


def refuse_lost_buffers(module: nn.Module) -> None:
    """An error for buffers that no file has and whose numbers meta has not kept."""
    saved = module.state_dict(keep_vars=True)
    lost = [name for name, b in module.named_buffers() if b.is_meta and name not in saved]
    if lost:
        raise ValueError(
            f"{', '.join(lost)}: persistent=False, so no file has it, and it was made on the meta "
            "device, so it has no numbers: make it outside torch.device('meta') and give it to the "
            "module before load_module, or register it as persistent and save again"
        )
