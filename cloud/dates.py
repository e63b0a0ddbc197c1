"""A date in any of the forms that data comes with, in the one form that sorts as text.

In: a field of an item. Out: ISO 8601 in UTC: `2020-01-31`, or `2020-01-31T10:22:00` where the time
is known.
"""

from __future__ import annotations

import re
from datetime import UTC, date, datetime
from email.utils import parsedate_to_datetime

_MILLI = 1000
_PER_SECOND = {9: 1, 10: 1, 12: _MILLI, 13: _MILLI}
"""By the number of digits: what a number counts since 1970, seconds or milliseconds."""


def read_date(value: object) -> str:
    """The date that `value` stands for, empty where it is None or blank.

    ISO 8601 with or without a time and a zone, with a space for the T; a year or a month, which
    counts as its first day; the form of e-mail and of tweets; as a number a year, YYYYMMDD, or
    seconds or milliseconds since 1970. A time without a zone is taken for UTC.

    Raises:
        ValueError: it is none of these.
    """
    if value is None:
        return ""
    if not isinstance(value, str | int | float) or isinstance(value, bool):
        raise ValueError(f"a date cannot be of type {type(value).__name__}")
    text = str(value).strip().removesuffix(" UTC")
    if not text:
        return ""
    if number := re.fullmatch(r"(\d+)(?:\.(\d+))?", text):
        return _from_number(number[1], number[2] or "")
    if re.fullmatch(r"\d{4}-\d\d", text):
        return date.fromisoformat(f"{text}-01").isoformat()
    if re.fullmatch(r"\d{4}-\d\d-\d\d", text):
        return date.fromisoformat(text).isoformat()
    return _in_utc(_moment(text))


def is_before(one: str, other: str) -> bool:
    """Whether a date is surely before another: one of the same day without its time is not."""
    shorter = min(len(one), len(other))
    return one[:shorter] < other[:shorter]


def _from_number(whole: str, fraction: str) -> str:
    if not fraction.strip("0"):
        if len(whole) == len("2020"):
            return date(int(whole), 1, 1).isoformat()
        if len(whole) == len("20200131"):
            return date.fromisoformat(whole).isoformat()
    if len(whole) not in _PER_SECOND:
        raise ValueError("no year, no YYYYMMDD and no time since 1970")
    return _in_utc(datetime.fromtimestamp(int(whole) // _PER_SECOND[len(whole)], UTC))


def _moment(text: str) -> datetime:
    try:
        return datetime.fromisoformat(text)
    except ValueError:
        pass
    try:
        return parsedate_to_datetime(text)
    # which one is up to Python's version
    except (ValueError, TypeError, IndexError, OverflowError) as error:
        raise ValueError(str(error)) from None


def _in_utc(moment: datetime) -> str:
    known = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
    try:
        return known.astimezone(UTC).replace(tzinfo=None).isoformat(timespec="seconds")
    except OverflowError:
        raise ValueError("beyond the years 1 to 9999") from None
