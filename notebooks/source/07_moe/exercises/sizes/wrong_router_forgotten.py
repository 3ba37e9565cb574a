# caught by: held, used, all
# Experts alone


def moe_sizes(width, hidden, num_experts, top_k):
    expert = 2 * width * hidden
    return num_experts * expert, top_k * expert
