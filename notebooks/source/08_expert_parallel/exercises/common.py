"""What several checks of lesson 08 share."""


def routing(num_tokens, num_experts, top_k, seed, favourites=None):
    """Chosen experts, (tokens, top_k), all different in a row; only ``favourites``, if given."""
    import torch

    random = torch.Generator().manual_seed(seed)
    allowed = torch.tensor(favourites if favourites is not None else range(num_experts))
    if not num_tokens:
        return torch.zeros(0, top_k, dtype=torch.int64)
    order = torch.rand(num_tokens, len(allowed), generator=random).argsort(1)
    return allowed[order[:, :top_k]]


def ranks_of(experts, num_experts, world_size):
    """On which rank each expert is."""
    return experts // (num_experts // world_size)


def numbers(got):
    """A list of whole numbers, from a list, a tuple or a tensor; else None."""
    import torch

    if isinstance(got, torch.Tensor):
        got = got.tolist() if got.dim() == 1 else None
    if not isinstance(got, list | tuple):
        return None
    try:
        return [int(value) for value in got]
    except (TypeError, ValueError):
        return None
