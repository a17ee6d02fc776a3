"""The budget of a run: what is about to be asked reserves its most, and gets back what it did not spend."""

import threading


class Budget:
    """Tokens and money that all actors of a run share. Ray runs it as an actor.

    A limit is hard: nothing is asked unless the most that it can cost fits into what is left.

    Args:
        tokens: Most tokens; 0: no limit.
        usd: Most money; 0: no limit.
        usd_per_token: Highest price of a token, prompt's or completion's.
    """

    def __init__(self, tokens: int, usd: float, usd_per_token: float):
        limits = [float(tokens)] if tokens else []
        if usd and usd_per_token:
            limits.append(usd / usd_per_token)
        self.left = min(limits, default=float("inf"))
        self.lock = threading.Lock()

    def reserve(self, most: list[int]) -> int:
        """Reserves the tokens of as many of the requests as fit, in their order. Returns how many."""
        with self.lock:
            for place, tokens in enumerate(most):
                if tokens > self.left:
                    return place
                self.left -= tokens
            return len(most)

    def settle(self, reserved: int, spent: int) -> None:
        """Gives back what was reserved, but not spent."""
        with self.lock:
            self.left += reserved - spent
