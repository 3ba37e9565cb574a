# caught by: first, second
# Off by one


def place(choices_N2, num_experts, limit):
    placed, taken = [-1] * len(choices_N2), [0] * num_experts
    for choice in (0, 1):
        for token, expert in enumerate(choices_N2[:, choice].tolist()):
            if placed[token] < 0 and taken[expert] < limit - 1:
                placed[token] = expert
                taken[expert] += 1
    return torch.tensor(placed)
