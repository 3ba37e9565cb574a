# caught by: between


def spacing(x, mantissa_bits):
    return x * 2.0**-mantissa_bits
