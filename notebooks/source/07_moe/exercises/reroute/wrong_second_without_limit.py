# caught by: limit
# Second choices are not counted


def place(choices_N2, num_experts, limit):
    first = choices_N2[:, 0]
    turn = F.one_hot(first, num_experts).cumsum(0).gather(1, first[:, None])[:, 0]
    return torch.where(turn <= limit, first, choices_N2[:, 1])
