def place(choices_N2, num_experts, limit):
    placed_N = torch.full_like(choices_N2[:, 0], -1)
    taken_E = torch.zeros(num_experts, dtype=torch.int64)
    for choice in (0, 1):
        waiting = torch.where(placed_N < 0)[0]
        wanted = choices_N2[waiting, choice]
        in_line_E = F.one_hot(wanted, num_experts).cumsum(0)
        turn = in_line_E.gather(1, wanted[:, None])[:, 0] + taken_E[wanted]
        lucky = turn <= limit
        placed_N[waiting[lucky]] = wanted[lucky]
        taken_E += wanted[lucky].bincount(minlength=num_experts)
    return placed_N
