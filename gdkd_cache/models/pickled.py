"""Pickles as data: a stack machine of the few operations that plain values need, which imports and calls nothing.

What a pickle would import is a `Name`, and what it would call is a `Call`; the reader of a format says what some of
them stand for. Python's and torch's own readers allocate whatever a few bytes claim, and hash keys of any depth.
"""

import pickletools
from collections.abc import Callable
from typing import Any, BinaryIO, NamedTuple


class Name(NamedTuple):
    """What a pickle would import."""

    module: str
    name: str


class Call(NamedTuple):
    """What a pickle would call."""

    function: object
    arguments: object


_KEYS = (str, int, float, bool, bytes, type(None))
_MARK = object()


def read_pickle(file: BinaryIO, call: Callable[[Call], object], persistent: Callable[[Any], object]) -> Any:
    """The value of the pickle that begins where a file stands; the file stands behind it then.

    Entries of dictionaries whose keys are not plain are left out, as is what is added to what is no list or dictionary.

    Args:
        file: of bounded size, as each of its bytes may take up to a hundred of memory.
        call: what stands for a `Call`.
        persistent: what stands for a persistent id.

    Raises:
        ValueError: it is no pickle, or needs operations of other objects.
        Exception: whatever else a damaged pickle does to the machine, such as IndexError.
    """
    stack: list[Any] = []
    memo: dict[int, Any] = {}
    argument: Any
    for operation, argument, _ in pickletools.genops(file):
        match operation.name:
            case "PROTO" | "FRAME":
                pass
            case "STOP":
                return stack.pop()
            case "NONE":
                stack.append(None)
            case "NEWTRUE" | "NEWFALSE":
                stack.append(operation.name == "NEWTRUE")
            case "INT" | "BININT" | "BININT1" | "BININT2" | "LONG" | "LONG1" | "LONG4" | "FLOAT" | "BINFLOAT":
                stack.append(argument)
            case (
                "STRING" | "BINSTRING" | "SHORT_BINSTRING" | "BINBYTES" | "SHORT_BINBYTES" | "BINBYTES8" | "BYTEARRAY8"
            ):
                stack.append(argument)
            case "UNICODE" | "BINUNICODE" | "SHORT_BINUNICODE" | "BINUNICODE8":
                stack.append(argument)
            case "MARK":
                stack.append(_MARK)
            case "EMPTY_TUPLE":
                stack.append(())
            case "EMPTY_LIST" | "EMPTY_SET":  # whose items need not be what can be in one
                stack.append([])
            case "EMPTY_DICT":
                stack.append({})
            case "TUPLE1" | "TUPLE2" | "TUPLE3":
                length = int(operation.name[-1])
                stack[-length:] = [tuple(stack[-length:])]
            case "TUPLE" | "FROZENSET":
                stack.append(tuple(_to_mark(stack)))
            case "LIST":
                stack.append(_to_mark(stack))
            case "DICT":
                stack.append(_add({}, _to_mark(stack)))
            case "APPEND" | "SETITEM":
                items = stack[-(1 if operation.name == "APPEND" else 2) :]
                del stack[-len(items) :]
                _add(stack[-1], items)
            case "APPENDS" | "ADDITEMS" | "SETITEMS":
                items = _to_mark(stack)
                _add(stack[-1], items)
            case "GET" | "BINGET" | "LONG_BINGET":
                stack.append(memo[argument])
            case "PUT" | "BINPUT" | "LONG_BINPUT" | "MEMOIZE":
                memo[len(memo) if argument is None else argument] = stack[-1]
            case "GLOBAL":
                stack.append(Name(*argument.split(" ", 1)))
            case "STACK_GLOBAL":
                name = stack.pop()
                stack.append(Name(str(stack.pop()), str(name)))
            case "REDUCE" | "NEWOBJ":
                arguments = stack.pop()
                stack.append(call(Call(stack.pop(), arguments)))
            case "NEWOBJ_EX":
                named, arguments = stack.pop(), stack.pop()
                stack.append(call(Call(stack.pop(), (arguments, named))))
            case "POP":
                stack.pop()
            case "BUILD":  # the attributes of an object, such as the `_metadata` of a state dict
                stack.pop()
            case "BINPERSID":
                stack.append(persistent(stack.pop()))
            case other:
                raise ValueError(f"its pickle has {other}, which plain tensors do not need")
    raise ValueError("its pickle has no end")


def _to_mark(stack: list[Any]) -> list[Any]:
    """What lies over the last mark, taken off with it."""
    items: list[Any] = []
    while (item := stack.pop()) is not _MARK:
        items.append(item)
    return items[::-1]


def _add(target: object, items: list[Any]) -> object:
    """Add to a list, or keys and values in turn to a dictionary."""
    if isinstance(target, list):
        target.extend(items)
    elif isinstance(target, dict):
        target |= {key: value for key, value in zip(items[::2], items[1::2], strict=True) if type(key) in _KEYS}
    return target
