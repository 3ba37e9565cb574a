# caught by: sum, other, calls
# its own number only


def rank_sum(number):
    x = torch.tensor([number])
    return x.sum().item()
