"""The order book: invented orders for subscriptions of Rosterlund."""

from dataclasses import dataclass


@dataclass(slots=True)
class Order:
    """An order. Amounts in euros, without VAT; dates as ISO 8601."""

    product: str
    amount: str
    ordered_on: str
    status: str

    @property
    def is_open(self) -> bool:
        """Whether it can still be cancelled."""
        return self.status.startswith(("received", "waiting"))


def order_book() -> dict[str, Order]:
    """Orders by id. Every caller gets a book of their own."""
    return {
        "RL-1041": Order("Team plan, 12 seats, annual", "864.00", "2026-02-03", "active since 2026-02-05"),
        "RL-1042": Order("Enterprise plan, 60 seats, annual", "8640.00", "2026-03-10", "waiting for the order form"),
        "RL-1043": Order("Basic plan, 4 seats, annual", "153.60", "2026-03-12", "received and starts on 2026-04-01"),
        "RL-1044": Order("Team plan, 20 seats, annual", "1440.00", "2026-03-15", "paid and starts on 2026-04-01"),
        "RL-1045": Order("Team plan, 5 seats, monthly", "37.50", "2026-03-16", "cancelled on 2026-03-17"),
    }
