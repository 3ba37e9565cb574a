# caught by: small
def alpha_beta(times):
    (small, quick), (large, slow) = min(times), max(times)
    beta = (slow - quick) / (large - small)
    return max(0.0, quick - beta * small), beta
