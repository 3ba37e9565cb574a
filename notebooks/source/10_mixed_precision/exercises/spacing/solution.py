import math


def spacing(x, mantissa_bits):
    return 2.0 ** (math.floor(math.log2(x)) - mantissa_bits)
