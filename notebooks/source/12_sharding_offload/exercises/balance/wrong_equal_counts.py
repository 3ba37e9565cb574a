# caught by: ends, mixed
# As many layers for each, whatever they cost


def balance(costs, devices):
    n = len(costs)
    return [n * (i + 1) // devices - n * i // devices for i in range(devices)]
