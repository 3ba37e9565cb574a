def all_gather(part):
    n = len(part)
    whole = part.new_empty(world_size * n)
    whole[rank * n : (rank + 1) * n] = part
    have = 1  # parts that this rank has: a block of neighbours
    while have < world_size:
        peer = rank ^ have  # the partner of this round: one bit differs
        mine, theirs = rank // have * have * n, peer // have * have * n
        coming = dist.irecv(whole[theirs : theirs + have * n], peer)
        dist.send(whole[mine : mine + have * n], peer)
        coming.wait()
        have *= 2
    return whole
