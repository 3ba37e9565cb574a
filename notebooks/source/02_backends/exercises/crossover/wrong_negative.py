# caught by: always
def overtakes(first, second):
    (alpha, beta), (other_alpha, other_beta) = first, second
    if beta == other_beta:
        return 0 if other_alpha <= alpha else None
    if other_beta > beta:
        return None
    return (other_alpha - alpha) / (beta - other_beta)
