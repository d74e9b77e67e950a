"""The bounds of the service: what one request may hold, how many may come at a time, how long each may take."""

from dataclasses import dataclass

__all__ = ["Limits"]


@dataclass(frozen=True)
class Limits:
    """Every bound in one place; the defaults suit one machine and texts of ordinary length.

    Args:
        max_body: bytes of a request.
        max_items: items of a request.
        max_text: characters of a field of an item.
        max_batch: items that the model reads together.
        max_wait: seconds that an item may wait for company.
        concurrency: requests worked on at a time; more are turned away with 429.
        timeout: seconds from the arrival of a request to its answer.
        patience: seconds for a request to arrive, first its head and then its body.
        grace: seconds for the requests in hand when the service is told to stop.
    """

    max_body: int = 1 << 20
    max_items: int = 128
    max_text: int = 10_000
    max_batch: int = 32
    max_wait: float = 0.002
    concurrency: int = 16
    timeout: float = 30.0
    patience: float = 10.0
    grace: float = 10.0

    @property
    def max_connections(self) -> int:
        """Open connections, idle ones too; more are closed unread. Far above `concurrency`, which answers 429."""
        return 64 + 8 * self.concurrency
