# caught by: equal
def overtakes(first, second):
    (alpha, beta), (other_alpha, other_beta) = first, second
    if other_beta >= beta:
        return None
    return max(0, (other_alpha - alpha) / (beta - other_beta))
