# caught by: used
# Counts the router's rows of the chosen experts only


def moe_sizes(width, hidden, num_experts, top_k):
    expert = width + 2 * width * hidden
    return num_experts * expert, top_k * expert
