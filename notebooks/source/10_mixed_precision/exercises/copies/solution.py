def project(x, q, k, v):
    if torch.is_autocast_enabled(x.device.type):
        x = x.to(torch.get_autocast_dtype(x.device.type))
    return F.linear(x, q), F.linear(x, k), F.linear(x, v)
