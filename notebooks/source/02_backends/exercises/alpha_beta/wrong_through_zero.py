# caught by: exact
def alpha_beta(times):
    return 0.0, sum(seconds / size for size, seconds in times) / len(times)
