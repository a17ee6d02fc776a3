"""A first look at a dataset: which days it spans."""

import datetime as dt
from typing import Any

from assets.interactions.readers.base import DatasetError, Reader, naming
from assets.interactions.validation import Limits, judge_events


def survey(reader: Reader, now: dt.datetime | None = None) -> dict[str, Any]:
    """Reads the events once, in bounded memory, and says which days they span.

    Args:
        reader: The source.
        now: The moment of reading; times beyond it do not count.

    Returns:
        ``dataset`` (as in ``BELVEDERE_DATASET``), ``first_day``, ``last_day`` (``YYYY-MM-DD``) and ``rows``
        (all rows read, bad ones included).

    Raises:
        DatasetError: If no row has a credible time, or the source cannot be read as it is.
    """
    limits = Limits(now or dt.datetime.now(dt.UTC))
    first: str | None = None
    last: str | None = None
    rows = 0
    for batch in reader.interactions():
        rows += len(batch.rows) + len(batch.faults)
        with naming(batch.source):
            days = judge_events(batch.rows, limits, None).good["day"]
        if len(days):
            low, high = str(days.min()), str(days.max())
            first, last = min(first or low, low), max(last or high, high)
    if first is None or last is None:
        raise DatasetError(
            f"The dataset {reader.source} has no event that can be read ({rows:,} rows were): check "
            f"its columns "
            "user_id, item_id and timestamp against docs/reference/data-contract.md."
        )
    return {"dataset": reader.source, "first_day": first, "last_day": last, "rows": rows}
