"""The one syntax of every spec on the command line: `name` or `name:key=value,key=value`."""

from gdkd_cache.errors import UsageError


def parse_spec(what: str, text: str, defaults: dict[str, int | float | str]) -> dict[str, int | float | str]:
    """Parse the part after the colon of a spec against typed defaults.

    Args:
        what: the spec's name, for messages, such as `recipe crop-flip`.
        text: `key=value,key=value`, possibly empty.
        defaults: the allowed keys; a value is read with the type of its default.

    Raises:
        UsageError: an unknown key, a missing `=` or a value of another type.
    """
    values = dict(defaults)
    for item in filter(None, text.split(",")):
        key, equals, value = item.partition("=")
        if not equals or key not in defaults:
            allowed = ", ".join(f"{k}={v}" for k, v in defaults.items()) or "no options"
            raise UsageError(f"{what}: cannot read {item!r}; allowed: {allowed}")
        kind = type(defaults[key])
        try:
            values[key] = kind(value)
        except ValueError:
            raise UsageError(f"{what}: {key}={value!r} is not {kind.__name__}") from None
    return values
