"""How fast a run goes and when it will end."""

import time
from datetime import timedelta


class Clock:
    """Rate over the last stretch and over the whole run since it was started or resumed."""

    def __init__(self, start: int, batch_size: int) -> None:
        self.start = self.last_step = start
        self.batch_size = batch_size
        self.began = self.last_time = time.monotonic()

    def rate(self, step: int) -> float:
        """Images a second since the last call."""
        now = time.monotonic()
        rate = (step - self.last_step) * self.batch_size / max(now - self.last_time, 1e-9)
        self.last_step, self.last_time = step, now
        return rate

    def left(self, step: int, steps: int) -> timedelta:
        """Time until the last step at the pace so far."""
        pace = (time.monotonic() - self.began) / max(step - self.start, 1)
        return timedelta(seconds=round(pace * (steps - step)))
