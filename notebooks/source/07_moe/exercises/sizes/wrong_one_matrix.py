# caught by: held, used, all
# An expert of one matrix


def moe_sizes(width, hidden, num_experts, top_k):
    router = num_experts * width
    return router + num_experts * width * hidden, router + top_k * width * hidden
