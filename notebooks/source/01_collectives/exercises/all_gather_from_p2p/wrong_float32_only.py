# caught by: integers
# The result is float whatever the parts are.


def all_gather(part):
    n = len(part)
    whole = torch.empty(world_size * n)
    whole[rank * n : (rank + 1) * n] = part
    have = 1
    while have < world_size:
        peer = rank ^ have
        mine, theirs = rank // have * have * n, peer // have * have * n
        coming = dist.irecv(whole[theirs : theirs + have * n], peer)
        dist.send(whole[mine : mine + have * n], peer)
        coming.wait()
        have *= 2
    return whole
