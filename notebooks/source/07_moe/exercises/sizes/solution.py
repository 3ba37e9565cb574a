def moe_sizes(width, hidden, num_experts, top_k):
    router = num_experts * width
    expert = 2 * width * hidden
    return router + num_experts * expert, router + top_k * expert
