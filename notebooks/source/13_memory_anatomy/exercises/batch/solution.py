def largest(need, memory):
    low, high = 0, 1
    while need(high) <= memory:
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        if need(middle) <= memory:
            low = middle
        else:
            high = middle
    return low
