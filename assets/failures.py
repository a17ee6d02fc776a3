"""Which errors are worth another try, and how the others are told: one sentence, no retry."""

import functools
from collections.abc import Callable
from typing import Any, TypeVar

import dagster as dg
import pydantic

Body = TypeVar("Body", bound=Callable[..., Any])

# Raised where the same input gives the same error again. System trouble (connections, lost workers, disks) is not here.
FINAL = (
    ValueError,
    TypeError,
    LookupError,
    AttributeError,
    ArithmeticError,
    AssertionError,
    ImportError,
    FileNotFoundError,
    NotImplementedError,
)


def root_cause(error: BaseException) -> BaseException:
    """The error that started a chain, also when it crossed a Ray task."""
    seen: set[int] = set()
    while id(error) not in seen:
        seen.add(id(error))
        inner = getattr(error, "cause", None) or error.__cause__
        if not isinstance(inner, BaseException):
            break
        error = inner
    return error


def sentence(error: BaseException) -> str:
    """First line of an error's message; its type's name where it has none; of pydantic's, what was refused and why.

    Refused values are not told: among them may be an address with its password.
    """
    if isinstance(error, pydantic.ValidationError):
        return refused(error, "{name}: {why}")
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


def refused(error: pydantic.ValidationError, told: str) -> str:
    """Everything that pydantic refused, in one line.

    Args:
        error: The error.
        told: Of each, with ``{name}``, ``{value}`` and ``{why}``.
    """
    return "; ".join(
        told.format(name=".".join(map(str, each["loc"])) or error.title, value=repr(each["input"]), why=each["msg"])
        for each in error.errors()
    )


def failure(error: Exception, doing: str) -> dg.Failure | None:
    """The failure to raise in place of ``error``, or None where it is transient and should be retried as it is."""
    if isinstance(error, dg.Failure | dg.RetryRequested):
        return None
    cause = root_cause(error)
    if isinstance(cause, dg.Failure):
        return cause
    if not isinstance(cause, FINAL):
        return None
    return dg.Failure(f"{doing}: {_named(cause)}", allow_retries=False)


def transient_failure(error: Exception, doing: str) -> dg.Failure:
    """The failure to raise in place of an error that another try may mend."""
    return dg.Failure(f"{doing}: {_named(root_cause(error))}", allow_retries=True)


def _named(cause: BaseException) -> str:
    """An error's sentence, with its type where the sentence alone does not say enough."""
    said = sentence(cause)
    telling = isinstance(cause, ValueError | FileNotFoundError) or type(cause).__module__.startswith("ray_jobs.")
    return said if telling else f"{type(cause).__name__}: {said}"


def data_errors_are_final(body: Body) -> Body:
    """Turns errors that another try can't mend into a `dagster.Failure` that is not retried.

    Stands between ``@dg.asset`` and the function.
    """

    @functools.wraps(body)
    def guarded(*args: Any, **kwargs: Any) -> Any:
        try:
            return body(*args, **kwargs)
        except Exception as error:
            final = failure(error, body.__name__)
            if final is None:
                raise
            raise final from error

    return guarded  # type: ignore[return-value]
