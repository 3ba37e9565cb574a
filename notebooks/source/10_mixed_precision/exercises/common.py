"""What several checks of lesson 10 share."""


def first_failures(findings):
    """The first failure of each case, and all that passed."""
    told: set[str] = set()
    return [f for f in findings if f["ok"] or not (f["case"] in told or told.add(f["case"]))]
