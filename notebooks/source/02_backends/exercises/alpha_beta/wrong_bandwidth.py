# caught by: exact
def alpha_beta(times):
    (small, quick), (large, slow) = min(times), max(times)
    return quick, (large - small) / (slow - quick)
