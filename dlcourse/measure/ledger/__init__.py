"""The ledger of live tensor storages: see `dlcourse.measure.ledger.ledger`."""

from dlcourse.measure.ledger.ledger import Ledger

__all__ = ["Ledger"]
