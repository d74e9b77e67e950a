"""The items of a request: JSON in UTF-8, read strictly, each refusal saying which item and what is allowed."""

import json
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

from danlu.serve.limits import Limits

__all__ = ["Refused", "read_items", "request_schema"]


class Refused(Exception):
    """A request that is not worked on.

    Args:
        status: of HTTP.
        message: what was given, what is allowed.
        item: index of the item at fault, if it is one.
        headers: of the answer.
    """

    def __init__(
        self, status: int, message: str, item: int | None = None, headers: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.item, self.headers = status, message, item, dict(headers or {})


def read_items(body: bytes, fields: Sequence[str], limits: Limits) -> list[dict[str, str]]:
    """The items of a body, {"items": [item, ...]} or one item alone.

    Args:
        body: as it came.
        fields: that an item has, every one a string.
        limits: for the number of items and their length.

    Returns:
        One dictionary with these fields for every item.

    Raises:
        Refused: 400 what is no JSON, 422 JSON of another shape.

    >>> read_items(b'{"text": "hello"}', ("text",), Limits())
    [{'text': 'hello'}]
    """
    value, example = _parse(body), example_item(fields)
    if not isinstance(value, dict):
        raise Refused(422, f"the body is {_kind(value)}, it must be an object such as {example}")
    if "items" not in value:
        return [_item(value, fields, limits, None)]
    if len(value) > 1:
        other = next(key for key in value if key != "items")
        raise Refused(422, f'beside "items" the body holds {_short(other)}; give "items" alone, or one item alone')
    items = value["items"]
    if not isinstance(items, list):
        raise Refused(422, f'"items" is {_kind(items)}, it must be a list of objects such as {example}')
    if len(items) > limits.max_items:
        raise Refused(422, f"{len(items):,} items, a request may hold {limits.max_items:,}; send several requests")
    return [_item(item, fields, limits, index) for index, item in enumerate(items)]


def request_schema(fields: Sequence[str], limits: Limits) -> dict[str, Any]:
    """What `read_items` takes, as a JSON schema."""
    item = {
        "type": "object",
        "properties": {name: {"type": "string", "maxLength": limits.max_text} for name in fields},
        "required": list(fields),
        "additionalProperties": False,
    }
    several = {
        "type": "object",
        "properties": {"items": {"type": "array", "items": item, "maxItems": limits.max_items}},
        "required": ["items"],
        "additionalProperties": False,
    }
    return {"anyOf": [several, item]}


def example_item(fields: Sequence[str]) -> str:
    """An item as a message shows it."""
    return json.dumps(dict.fromkeys(fields, "..."))


def _parse(body: bytes) -> Any:
    """JSON as RFC 8259 has it: UTF-8, no NaN, and no deeper or longer than Python reads safely."""
    try:
        return json.loads(body.decode("utf-8"), parse_constant=_refuse_constant)
    except UnicodeDecodeError as error:
        wrong = error.object[error.start]
        raise Refused(400, f"the body is not UTF-8 (byte {wrong:#04x} at {error.start}); send JSON in UTF-8") from None
    except json.JSONDecodeError as error:
        where = f"line {error.lineno} column {error.colno}"
        raise Refused(400, f"the body is not JSON ({error.msg}, {where})") from None
    except RecursionError:
        raise Refused(400, "the body is nested too deep; an item is a flat object of strings") from None
    except ValueError:  # an integer of thousands of digits
        raise Refused(400, "the body holds a number of too many digits; an item is a flat object of strings") from None


def _refuse_constant(word: str) -> NoReturn:
    raise Refused(400, f"{word} is not JSON; an item is a flat object of strings")


def _item(item: Any, fields: Sequence[str], limits: Limits, index: int | None) -> dict[str, str]:
    where = "" if index is None else f"item {index}: "
    if not isinstance(item, dict):
        raise Refused(422, f"{where}{_kind(item)} where {example_item(fields)} is expected", index)
    for name in fields:
        if name not in item:
            raise Refused(422, f"{where}no {name!r}; an item is {example_item(fields)}", index)
        text = item[name]
        if not isinstance(text, str):
            raise Refused(422, f"{where}{name} is {_kind(text)}, it must be a string", index)
        if len(text) > limits.max_text:
            message = f"{where}{name} has {len(text):,} characters, at most {limits.max_text:,} are read; cut it"
            raise Refused(422, message, index)
        if not _well_formed(text):
            raise Refused(422, f"{where}{name} holds half of a surrogate pair; send well-formed Unicode", index)
    for name in item:
        if name not in fields:
            raise Refused(422, f"{where}unknown field {_short(name)}; an item is {example_item(fields)}", index)
    return {name: item[name] for name in fields}


def _well_formed(text: str) -> bool:
    """Whether a string has an encoding; JSON can spell half of a surrogate pair, which is no character."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _kind(value: Any) -> str:
    if value is None:
        return "null"
    names = {dict: "an object", list: "a list", str: "a string", bool: "a truth value", int: "a number"}
    return names.get(type(value), "a number")


def _short(name: str) -> str:
    """A name of the user's in a message, escaped and cut."""
    shown = repr(name)
    return shown if len(shown) <= 40 else f"{shown[:36]}...'"
