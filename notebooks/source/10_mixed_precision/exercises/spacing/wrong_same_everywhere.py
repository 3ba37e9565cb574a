# caught by: powers


def spacing(x, mantissa_bits):
    return 2.0**-mantissa_bits
