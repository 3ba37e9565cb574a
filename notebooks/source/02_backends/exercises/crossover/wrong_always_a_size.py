# caught by: never
def overtakes(first, second):
    (alpha, beta), (other_alpha, other_beta) = first, second
    if beta == other_beta:
        return 0 if other_alpha <= alpha else None
    return max(0, (other_alpha - alpha) / (beta - other_beta))
