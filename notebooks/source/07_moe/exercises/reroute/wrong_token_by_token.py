# caught by: first
# A second choice takes the place of a later first choice


def place(choices_N2, num_experts, limit):
    placed, taken = [-1] * len(choices_N2), [0] * num_experts
    for token, choices in enumerate(choices_N2.tolist()):
        for expert in choices:
            if placed[token] < 0 and taken[expert] < limit:
                placed[token] = expert
                taken[expert] += 1
    return torch.tensor(placed)
