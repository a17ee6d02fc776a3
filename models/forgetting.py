"""The forget-list: who must not come back, without a list of names."""

import dataclasses
import hmac
import re

import polars as pl

MASK = "•••"


@dataclasses.dataclass(frozen=True)
class ForgetList:
    """Users that were forgotten, by keyed digest.

    Attributes:
        key: Secret of the digests. Without it nobody can try ids out; who loses it can no longer keep users away.
        digests: Keyed digests of the users.
    """

    key: bytes = b""
    digests: frozenset[str] = frozenset()

    def digest(self, user_id: str) -> str:
        """Keyed digest of a user's id: HMAC-SHA-256, in hex."""
        return hmac.digest(self.key, user_id.encode(), "sha256").hex()

    def holds(self, user_ids: pl.Series) -> pl.Series:
        """Whether each id is on the list; null ids are not. Each distinct id is digested once."""
        if not self.digests:
            return pl.Series("forgotten", [False], dtype=pl.Boolean).new_from_index(0, len(user_ids))
        found = [user for user in user_ids.unique().drop_nulls() if self.digest(user) in self.digests]
        return user_ids.is_in(pl.Series(found, dtype=pl.String).implode()).fill_null(False).alias("forgotten")


NOBODY = ForgetList()


def names(content: bytes, user_id: bytes) -> bool:
    """Whether an id stands in ``content`` as a whole word: `user_1` is not named by `user_10`."""
    # Most contents hold no part of it; looking for that costs next to nothing.
    return user_id in content and _whole(user_id).search(content) is not None


def mask(content: bytes, user_id: bytes) -> bytes:
    """The content with stars, as many as there were bytes, where `names` finds the id."""
    return _whole(user_id).sub(b"*" * len(user_id), content) if user_id in content else content


def _whole(user_id: bytes) -> re.Pattern[bytes]:
    # Bytes from 0x80 on are parts of letters in UTF-8.
    letter = rb"[0-9A-Za-z_\x80-\xff]"
    return re.compile(rb"(?<!" + letter + rb")" + re.escape(user_id) + rb"(?!" + letter + rb")")
