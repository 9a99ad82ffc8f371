"""`classes.yaml`: the classes of a dataset of one's own, and what its mask files say.

    classes: [road, car, sky]                    # names in order: ids 0, 1, 2
    classes: {road: 7, car: 26, sky: 23}         # names with the ids in the masks, up to 65535
    classes: {road: [128, 64, 128], car: [0, 0, 142]}      # names with the colours in the masks
    ignore: [0, 255]                             # ids, or colours, that count for nothing; id 255 does so anyway

A list of names alone, without `classes:`, will do. The order is that of the student's outputs.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from dsd_core.data.class_list import rainbow
from dsd_core.data.dataset import IGNORE, MOST_CLASSES
from dsd_core.data.labels import BYTE, COLOUR, FIELD, WORD, Labels, id_table, labels_by_table
from dsd_core.errors import DataError, shown
from dsd_core.yaml_text import parse_yaml

NAME = "classes.yaml"
MOST_BYTES = 1_000_000
FORMS = (
    "Write `classes:` with a list of names, or with names and their ids ({road: 7}), or with names and their colours "
    "({road: [128, 64, 128]}), and `ignore:` with ids or colours that count for nothing."
)


def read_classes(path: Path) -> Labels:
    """The classes of a file and the table of its masks; raises DataError that says what is wrong with it."""
    said = _load(path)
    fields = said if isinstance(said, dict) else {"classes": said}
    if set(fields) - {"classes", "ignore"} or not isinstance(fields.get("ignore", []), list):
        raise _wrong(path, "may hold `classes` and `ignore`, a list, and nothing else")
    numbers = _numbers(path, fields.get("classes"))
    ignored = [_number(path, value) for value in fields.get("ignore", [])]
    _refuse_nonsense(path, numbers, ignored)
    colours = any(isinstance(value, tuple) for value in [*numbers.values(), *ignored])
    packed = {name: _packed(value) for name, value in numbers.items()}
    entries = COLOUR if colours else WORD if max([*packed.values(), *map(_packed, ignored)]) >= BYTE else BYTE
    void = {*map(_packed, ignored)} | (set() if colours else {IGNORE} - set(packed.values()))
    table = id_table({number: place for place, number in enumerate(packed.values())}, void, entries)
    palette = [value for value in numbers.values() if isinstance(value, tuple)] or rainbow(len(numbers))
    return labels_by_table(numbers, palette, table)


Number = int | tuple[int, int, int]
"""An id, or a colour."""


def _load(path: Path) -> Any:
    if not path.is_file():
        raise DataError(f"There is no {shown(path)}, which names the classes.", field=FIELD, hint=FORMS)
    if path.stat().st_size > MOST_BYTES:
        raise _wrong(path, "has more than a million bytes")
    try:
        return parse_yaml(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise _wrong(path, f"cannot be read as YAML: {error}") from error


def _numbers(path: Path, classes: Any) -> dict[str, Number]:
    """What masks hold for each class, by its name and in order."""
    if isinstance(classes, list):
        names = [_name(path, name) for name in classes]
        if len(set(names)) < len(names):
            raise _wrong(path, "names a class twice")
        return {name: place for place, name in enumerate(names)}
    if isinstance(classes, dict):
        return {_name(path, name): _number(path, value) for name, value in classes.items()}
    raise _wrong(path, "does not list the classes")


def _name(path: Path, name: Any) -> str:
    if not isinstance(name, str) or not name.strip() or len(name) > 200 or not name.isprintable():
        raise _wrong(path, f"has a class whose name is no line of text but {type(name).__name__}")
    return name.strip()


def _number(path: Path, value: Any) -> Number:
    if isinstance(value, list) and len(value) == 3 and all(_is_whole(part, BYTE) for part in value):
        return value[0], value[1], value[2]
    if _is_whole(value, WORD):
        return int(value)
    raise _wrong(path, "has an id that is no whole number of 0..65535, or a colour that is not three of 0..255")


def _is_whole(value: Any, limit: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < limit


def _refuse_nonsense(path: Path, numbers: dict[str, Number], ignored: list[Number]) -> None:
    values = [*numbers.values(), *ignored]
    if not 0 < len(numbers) <= MOST_CLASSES:
        raise _wrong(path, f"lists {len(numbers)} classes; 1 to {MOST_CLASSES} are possible")
    if len(set(values)) < len(values):
        raise _wrong(path, "gives one id or colour to two classes, or both to a class and to `ignore`")
    if len({isinstance(value, tuple) for value in values}) > 1:
        raise _wrong(path, "mixes ids and colours")


def _packed(value: Number) -> int:
    return value[0] << 16 | value[1] << 8 | value[2] if isinstance(value, tuple) else value


def _wrong(path: Path, what: str) -> DataError:
    return DataError(f"{shown(path)} {what}.", field=FIELD, hint=FORMS)
