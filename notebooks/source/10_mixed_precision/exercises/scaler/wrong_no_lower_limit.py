# caught by: range
# No floor: a long storm drives the scale to nothing


class Scaler:
    def __init__(self, scale=2.0**16, interval=3):
        self.scale, self.interval, self.calm = scale, interval, 0

    def unscale(self, grads):
        bad = torch.zeros(())
        for grad in grads:
            grad /= self.scale
            if not grad.isfinite().all():
                bad += 1
        dist.all_reduce(bad)
        if bad > 0:
            self.scale, self.calm = self.scale / 2, 0
            return False
        self.calm += 1
        if self.calm == self.interval:
            self.scale, self.calm = min(self.scale * 2, 2.0**24), 0
        return True
