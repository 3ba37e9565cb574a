# caught by: used, all
# As if a token used a single expert


def moe_sizes(width, hidden, num_experts, top_k):
    router, expert = num_experts * width, 2 * width * hidden
    return router + num_experts * expert, router + expert
