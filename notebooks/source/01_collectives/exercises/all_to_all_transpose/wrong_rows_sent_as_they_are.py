# caught by: values
# Sends rows where columns were needed.


def transpose(rows):
    arriving = torch.empty_like(rows)
    dist.all_to_all_single(arriving, rows)
    return arriving
