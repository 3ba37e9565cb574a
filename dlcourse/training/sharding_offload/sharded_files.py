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

from dlcourse.training.sharding_offload.sharded_files_checks import (
    DTYPES,
    INDEX,
    NAMES,
    check_buffers,
    check_entry,
    check_equal,
    check_header,
    check_readable,
    check_saved,
    check_tensor,
    check_whole,
    read_index,
)


def save_file(tensors: Mapping[str, Tensor], path: Path) -> None:
    """Write one safetensors file. An older one in its place is replaced when this one is whole.

    Raises:
        ValueError: a tensor that the format does not know, or that has no numbers.
    """
    header: dict[str, Any] = {}
    start = 0
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
    try:
        with part.open("wb") as file:
            file.write(len(text).to_bytes(8, "little") + text)
            for tensor in tensors.values():
                row = tensor.detach().cpu().resolve_conj().resolve_neg().contiguous()
                row = row.as_strided((row.numel(),), (1,))  # one number may have any stride
                file.write(row.view(torch.uint8).numpy().data)
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)  # is there only if something failed


def save_shards(model: nn.Module, folder: Path, groups: Sequence[Sequence[str]]) -> None:
    """One file for each group of names, and the index.

    Args:
        groups: names of ``model.state_dict()``; each of them once.

    Raises:
        ValueError: other names, or a tensor that cannot be saved; before anything is written.
    """
    state = model.state_dict()
    where: dict[str, str] = {}  # the file of each tensor
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
        self.header: dict[str, Any] = {}
        with check_header(path):
            if self.start <= size:
                self.header = json.loads(self.bytes[8 : self.start])
            self.header.pop("__metadata__", None)
            end = max((self._span(name)[1] for name in self.header), default=self.start)
        check_whole(path, end)

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
        check_readable(self.name, self.header, name)
        entry = self.header[name]
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
    where = read_index(folder)
    files: dict[str, File] = {}
    wanted = module.state_dict(keep_vars=True)
    check_buffers(module, wanted)
    names: dict[Tensor, list[str]] = {}  # of each tensor
    for name, tensor in wanted.items():
        names.setdefault(tensor, []).append(name)
    loaded: dict[str, Tensor] = {}
    num_bytes = 0
    for tensor, all_names in names.items():
        saved = [name for name in all_names if name in where]
        check_saved(all_names, saved, folder)
        for name in saved:
            if where[name] not in files:
                files[where[name]] = File(folder / where[name])
            check_entry(files[where[name]].name, files[where[name]].header, name, tensor)
        check_equal({name: files[where[name]].raw(name) for name in saved}, folder)
        new = files[where[saved[0]]].read(saved[0])
        num_bytes += new.nbytes
        new = new.to(device, tensor.dtype)
        if isinstance(tensor, nn.Parameter):
            new = nn.Parameter(new, requires_grad=tensor.requires_grad)
        loaded |= dict.fromkeys(all_names, new)
    module.load_state_dict(loaded, assign=True)  # the meta tensors make way
    return num_bytes
