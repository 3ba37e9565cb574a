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
DTYPES |= {"I64": torch.int64, "I32": torch.int32, "U8": torch.uint8, "BOOL": torch.bool}
NAMES = {dtype: name for name, dtype in DTYPES.items()}


def save_file(tensors: Mapping[str, Tensor], path: Path) -> None:
    """Write one safetensors file."""
    header, start = {}, 0
    for name, tensor in tensors.items():
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
        entry = self.header[name]
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
        ValueError: a tensor is in no file, or has another shape there.
    """
    where = json.loads((folder / INDEX).read_text())["weight_map"]
    files, loaded = {}, {}
    tied: dict[Tensor, Tensor] = {}  # a tensor with two names is read once, and stays one
    for name, wanted in module.state_dict(keep_vars=True).items():
        if wanted in tied:
            loaded[name] = tied[wanted]
            continue
        if name not in where:
            raise ValueError(
                f"{name} is in no file of {folder.name}: build the model with the configuration "
                "that was saved"
            )
        if where[name] not in files:
            files[where[name]] = File(folder / where[name])
        file = files[where[name]]
        shape = tuple(file.header[name]["shape"])
        if shape != wanted.shape:
            raise ValueError(
                f"{name} has shape {shape} in {where[name]} and {tuple(wanted.shape)} in the "
                "module: build the model with the configuration that was saved"
            )
        tensor = file.read(name).to(device)
        if isinstance(wanted, nn.Parameter):
            tensor = nn.Parameter(tensor, requires_grad=wanted.requires_grad)
        loaded[name] = tied[wanted] = tensor
    module.load_state_dict(loaded, assign=True)  # the meta tensors make way
    return sum(math.prod(t.shape) * t.itemsize for t in tied.values())
