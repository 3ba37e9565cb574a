# caught by: bytes
# Few rounds, but always the whole buffer.


def all_gather(part):
    n = len(part)
    whole = part.new_zeros(world_size * n)
    whole[rank * n : (rank + 1) * n] = part
    have = 1
    while have < world_size:
        inbox = torch.empty_like(whole)
        coming = dist.irecv(inbox, rank ^ have)
        dist.send(whole, rank ^ have)
        coming.wait()
        whole += inbox
        have *= 2
    return whole
