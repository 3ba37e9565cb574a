# caught by: powers
import math


def spacing(x, mantissa_bits):
    return 2.0 ** (int(math.log2(max(x, 1))) - mantissa_bits)
