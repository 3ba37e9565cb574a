def overtakes(first, second):
    (alpha, beta), (other_alpha, other_beta) = first, second
    if other_alpha <= alpha and other_beta <= beta:
        return 0
    if other_beta >= beta:
        return None
    return max(0, (other_alpha - alpha) / (beta - other_beta))
