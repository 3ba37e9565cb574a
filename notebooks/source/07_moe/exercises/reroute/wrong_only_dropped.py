# caught by: second, dropped
# No second choice at all


def place(choices_N2, num_experts, limit):
    placed, taken = [-1] * len(choices_N2), [0] * num_experts
    for choice in (0,):
        for token, expert in enumerate(choices_N2[:, choice].tolist()):
            if placed[token] < 0 and taken[expert] < limit:
                placed[token] = expert
                taken[expert] += 1
    return torch.tensor(placed)
