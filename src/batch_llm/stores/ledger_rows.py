"""A ledger's rows, read back as what they were."""

from __future__ import annotations

from typing import Any

from batch_llm.base import WorkItemResult
from batch_llm.core.usage import no_usage
from batch_llm.stores.base import Attempt, ItemState, Record
from batch_llm.stores.values import from_json, id_of, usage_from


def read_record(row: tuple[Any, ...]) -> Record:
    """Return a row of items and payloads as a record.

    Raises:
        DamagedTextError: A text in it is no JSON.
    """
    item_id, content, state, output, error, code, model, usage, attempts, seconds, ratings, body = (
        row[:12]
    )
    if state not in {ItemState.DONE, ItemState.FAILED}:  # what it was before does not count
        return Record(item_id=id_of(item_id), content=content, state=ItemState(state))
    return Record(
        item_id=id_of(item_id),
        content=content,
        state=ItemState(state),
        output=from_json(output),
        error=error,
        error_code=code,
        model=model,
        usage=from_json(usage) or {},
        attempts=attempts,
        seconds=seconds or 0.0,
        safety_ratings=from_json(ratings),
        response_body=body,
    )


def reused_row(item_id: str, row: tuple[Any, ...]) -> WorkItemResult[Any, Any]:
    """Return a row's result as the engine shows it: with counts of tokens, were there any or not.

    Raises:
        DamagedTextError: A text in it is no JSON.
    """
    result = result_of_row(item_id, row)
    result.token_usage = result.token_usage or no_usage()
    return result


def result_of_row(item_id: str, row: tuple[Any, ...]) -> WorkItemResult[Any, Any]:
    """Return a row's result as it was; what ``reused`` makes of its record, at half the price.

    Raises:
        DamagedTextError: A text in it is no JSON.
    """
    error, ratings = row[4], row[10]
    result: WorkItemResult[Any, Any] = WorkItemResult(
        item_id,
        error is None,
        from_json(row[3]),
        error,
        None,
        from_json(row[7]) or {},
        None if ratings is None else from_json(ratings),
        row[5],
        row[8],
        row[9] or 0.0,
        row[6],
        row[11],
    )
    result.is_reused = True
    return result


def read_attempt(row: tuple[Any, ...]) -> Attempt:
    """Return a row of tries as an attempt.

    Raises:
        DamagedTextError: A text in it is no JSON.
    """
    number, started_at, seconds, sent, got, further, code, error, change, *billed_as = row
    return Attempt(
        number,
        started_at,
        seconds,
        usage_from(sent, got, further),
        code,
        error,
        None if billed_as[0] is None else (billed_as[0], billed_as[1], billed_as[2]),
        change,
    )
