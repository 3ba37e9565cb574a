# caught by: later
def overtakes(first, second):
    (alpha, beta), (other_alpha, other_beta) = first, second
    if other_alpha <= alpha and other_beta <= beta:
        return 0
    if other_beta >= beta:
        return None
    return (other_alpha - alpha) / (1 / other_beta - 1 / beta)
