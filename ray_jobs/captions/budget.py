"""The budget of a run: what is about to be asked reserves its most, and gets back what it did not spend."""

import math
import threading


class Budget:
    """Tokens and money that all actors of a run share. Ray runs it as an actor.

    A limit is hard: nothing is asked unless the most that it can cost fits into what is left. What was spent counts at
    its own price: prompts are cheaper than answers, and most of the tokens.

    Args:
        tokens: Most tokens; 0: no limit.
        usd: Most money; 0: no limit.
        usd_per_token: Highest price of a token, prompt's or completion's.
    """

    def __init__(self, tokens: int, usd: float, usd_per_token: float):
        self.tokens = float(tokens) if tokens else math.inf
        self.usd = usd if usd and usd_per_token else math.inf
        self.usd_per_token = usd_per_token
        self.lock = threading.Lock()

    @property
    def left(self) -> float:
        """Tokens that can still be reserved."""
        return min(self.tokens, self.usd / self.usd_per_token if self.usd_per_token else math.inf)

    def reserve(self, most: list[int]) -> int:
        """Reserves the tokens of as many of the requests as fit, in their order. Returns how many."""
        with self.lock:
            for place, tokens in enumerate(most):
                if tokens > self.left:
                    return place
                self._take(tokens, tokens * self.usd_per_token)
            return len(most)

    def settle(self, reserved: int, spent: int, usd: float) -> None:
        """Gives back what was reserved, but not spent: ``spent`` tokens, which cost ``usd``."""
        with self.lock:
            self._take(spent - reserved, usd - reserved * self.usd_per_token)

    def _take(self, tokens: int, usd: float) -> None:
        self.tokens -= tokens
        self.usd -= usd
