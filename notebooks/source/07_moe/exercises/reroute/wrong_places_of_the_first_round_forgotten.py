# caught by: limit
# The second round begins with empty experts


def place(choices_N2, num_experts, limit):
    placed_N = torch.full_like(choices_N2[:, 0], -1)
    for choice in (0, 1):
        waiting = torch.where(placed_N < 0)[0]
        wanted = choices_N2[waiting, choice]
        turn = F.one_hot(wanted, num_experts).cumsum(0).gather(1, wanted[:, None])[:, 0]
        lucky = turn <= limit
        placed_N[waiting[lucky]] = wanted[lucky]
    return placed_N
