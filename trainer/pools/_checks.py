"""What several pools ask of their arguments. Each raises ValueError with what is allowed and what was found."""


def whole(name: str, value: int, least: int = 1) -> int:
    """The value, if it is a whole number from `least` up."""
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise ValueError(f"{name} must be a whole number from {least} up, got {value!r}")
    return value


def wholes(name: str, values: tuple[int, ...]) -> tuple[int, ...]:
    """The values, if they are whole numbers from 1 up, and at least one."""
    if not isinstance(values, (tuple, list)) or not values:
        raise ValueError(f"{name} must be a list of whole numbers from 1 up, got {values!r}")
    return tuple(whole(f"every value of {name}", value) for value in values)


def positive(name: str, value: float) -> float:
    """The value, if it is above 0."""
    if not value > 0:
        raise ValueError(f"{name} must be above 0, got {value}")
    return value
