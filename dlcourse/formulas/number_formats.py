"""Range and digits of a floating-point type, by its bits.

A number is (1 + fraction) x 2**exponent: one bit for the sign, ``exponent_bits`` for the range,
``mantissa_bits`` for the fraction. The largest code of the exponent means infinity or NaN, the
smallest one numbers without the leading 1 (subnormal), down to 0.

    float32 8, 23    bfloat16 8, 7    float16 5, 10    float8_e5m2 5, 2

torch's float8_e4m3fn is no such type: it gives infinity up and reaches 448 instead of 240.

Source: IEEE 754-2019, section 3.4.
"""

from __future__ import annotations

import math


def largest_number(exponent_bits: int, mantissa_bits: int) -> float:
    """The largest finite number."""
    bias = 2 ** (exponent_bits - 1) - 1
    return (2 - 2.0**-mantissa_bits) * 2.0**bias


def smallest_number(exponent_bits: int, mantissa_bits: int) -> float:
    """The smallest number above 0, a subnormal one."""
    bias = 2 ** (exponent_bits - 1) - 1
    return 2.0 ** (1 - bias - mantissa_bits)


def spacing(x: float, mantissa_bits: int) -> float:
    """The gap between a positive normal number and the next larger one."""
    return 2.0 ** (math.floor(math.log2(x)) - mantissa_bits)
