"""Can a device compute in 16 bits at all, and has it units that make it fast?"""

from __future__ import annotations

import torch

HALVES = (torch.bfloat16, torch.float16)
# What a CPU calls its instructions for products of 16-bit numbers, on x86 and on ARM
_CPU_UNITS = {
    torch.bfloat16: ("amx_bf16", "avx512_bf16", "avx10_2", "bf16"),
    torch.float16: ("amx_fp16", "avx512_fp16", "avx10_2", "fp16_arith"),
}


def check_precision(dtype: torch.dtype, device: torch.device | str) -> None:
    """Multiply two tiny matrices, to see whether ``device`` can do it in ``dtype``.

    torch only warns here, and then goes on *without* autocast or loss scaling.

    Raises:
        ValueError: not a 16-bit type, no such device, or a device without that type.
    """
    if dtype not in HALVES:
        raise ValueError(
            f"dtype={dtype} is not a type for mixed precision: give torch.bfloat16 or torch.float16"
        )
    other = HALVES[dtype == torch.bfloat16]
    try:
        one = torch.ones(2, 2, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(
            f"device={str(device)!r} is not usable here ({_first_line(error)}): give device='cpu'"
        ) from None
    try:
        half = one.to(dtype)
        half @ half
    except (RuntimeError, TypeError) as error:  # NotImplementedError is a RuntimeError
        raise ValueError(
            f"dtype={dtype} does not work on device={str(device)!r} ({_first_line(error)}): "
            f"give dtype={other}, or a device that has it"
        ) from None


def has_units(dtype: torch.dtype, device: torch.device | str) -> bool:
    """Has the hardware instructions for matrices of ``dtype``? If not, they are emulated, slowly.

    Known from what torch says about the device; False where it says nothing.
    """
    device = torch.device(device)
    if device.type == "cpu":
        found = torch.cpu.get_capabilities()
        return any(found.get(name, False) for name in _CPU_UNITS[dtype])
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (
            (7, 0) if dtype == torch.float16 else (8, 0)
        )
    return device.type == "mps" and dtype == torch.float16


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")
