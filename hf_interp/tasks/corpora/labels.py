"""Labels of a corpus: names, ids, or what `label_map` says of them; decided once for the whole corpus."""

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from hf_interp.tasks.recipe import CorpusConfig

SHOWN = 4  # labels in an error, at the most
NULL = "\0"
WHOLE = re.compile(r"0|[1-9]\d*")


class BadValueError(ValueError):
    """Says of a value what it is not, and what to do; who raises it need not know where the value stands."""

    def __init__(self, what: str, remedy: str) -> None:
        super().__init__(what)
        self.what = what
        self.remedy = remedy


def by_meaning(labels: Iterable[str]) -> dict[str, list[str]]:
    """Return the spellings of every label, which differ in case and white space alone, in their order.

    >>> by_meaning(["Very good", "bad", "very  good "])
    {'very good': ['Very good', 'very  good '], 'bad': ['bad']}
    """
    found: dict[str, list[str]] = {}
    for label in labels:
        found.setdefault(" ".join(label.split()).casefold(), []).append(label)
    return found


def tell_renamed(trained: Sequence[str], names: Sequence[str]) -> str | None:
    """Return what to say of a head that was trained for labels of other names than those it is read by, in their order.

    >>> tell_renamed(["NEGATIVE", "POSITIVE"], ["negative", "positive"])
    >>> tell_renamed(["negative", "positive"], ["good", "poor"])[:64]
    "M₀'s head was trained for negative, positive, and is read as goo"
    """
    is_named = not all(re.fullmatch(r"(LABEL_)?\d+", label) for label in trained)
    if not is_named or len(trained) != len(names) or [*by_meaning(trained)] == [*by_meaning(names)]:
        return None
    return (
        f"M₀'s head was trained for {', '.join(trained)}, and is read as {', '.join(names)}, in this order. If another "
        "is right, change `label_names`, or map the labels (`label_map`)."
    )


class LabelResolver:
    """A function from a label of a file to its index in `label_names`; `None` if its rows are to be dropped.

    Keys of `label_map` are labels as the file has them; of a file with ids and names, names before ids. A label that it
    does not mention is a name or, where there is no map, an id. `decide` settles which of the two all labels of a
    corpus are; before that every label is taken by itself.

    Args:
        config: the corpus.
        label_names: the labels of the task.
        names: what `datasets` calls the labels of the file, where they are numbers.
        null: what a label is mapped to null for, as a remedy; `None` where every value needs a label.
        is_cells: whether labels are cells of a table, which tells no texts from numbers.
    """

    def __init__(
        self,
        config: CorpusConfig,
        label_names: Sequence[str],
        names: Sequence[str] | None = None,
        *,
        null: str | None = "drop its rows",
        is_cells: bool = False,
    ) -> None:
        self.label_names, self.label_map = list(label_names), config.label_map
        self._names, self._null, self._is_cells = names, null, is_cells
        self._index = {name: index for index, name in enumerate(label_names)}
        self._map = {key: target for label, target in (config.label_map or {}).items() for key in _spellings(label)}
        self._reading: str | None = None

    def __call__(self, value: Any) -> int | None:
        """Return the index of a label."""
        if isinstance(value, (list, Mapping)):
            raise BadValueError(f"{value!r:.80} where one label belongs", "Name another column.")
        key = self._map_key(value)
        if key is None:
            found, readings = self._named(value), self._readings(value)
            if self._reading is not None:
                readings = {reading: index for reading, index in readings.items() if reading == self._reading}
            elif len(set(readings.values())) > 1:
                self._refuse_both([value])
        else:
            found = self._map[key]
            readings = self._by_name(found)
            if found is None:
                return None
        if not readings:
            self._refuse(found)
        return next(iter(readings.values()))

    def decide(self, values: Iterable[Any]) -> None:
        """Settle whether the labels of a corpus are names or ids."""
        plain = [value for value in values if not isinstance(value, (list, Mapping)) and not _is_null(value)]
        known = [value for value in plain if self._map_key(value) is None]
        found = [self._readings(value) for value in known]
        fits = [reading for reading in ("names", "ids") if all(reading in each for each in found)]
        if len(fits) == 2 and any(each["names"] != each["ids"] for each in found):
            self._refuse_both(known)
        if not fits and all(found):
            name = next(value for value, each in zip(known, found, strict=True) if "ids" not in each)
            number = next(value for value, each in zip(known, found, strict=True) if "names" not in each)
            raise BadValueError(
                f"labels of which some are names, such as {name!r}, and some ids, such as {number!r}",
                "Write all alike, or map them in `label_map`.",
            )
        if known:
            count = {reading: sum(reading in each for each in found) for reading in ("names", "ids")}
            self._reading = max(count, key=lambda reading: count[reading])

    def _named(self, value: Any) -> Any:
        names = self._names or []
        return names[value] if _is_whole(value) and 0 <= value < len(names) else value

    def _map_key(self, value: Any) -> str | None:
        keys = [
            *_spellings(self._named(value)),
            *(key for key in _spellings(value) if key not in (self._names or ())),  # a number that is a name is no id
            *([NULL] if self._is_cells and value == "" else []),
        ]
        return next((key for key in keys if key in self._map), None)

    def _by_name(self, value: Any) -> dict[str, int]:
        return dict([("names", self._index[key]) for key in _spellings(value) if key in self._index][:1])

    def _readings(self, value: Any) -> dict[str, int]:
        """Return the indices of a label as a name and as an id, as far as it can be either."""
        found = self._named(value)
        if self._is_cells and isinstance(found, str) and WHOLE.fullmatch(found):
            found = int(found)
        is_id = _is_whole(found) and 0 <= found < len(self.label_names) and not self._map
        return self._by_name(self._named(value)) | ({"ids": found} if is_id else {})

    def _refuse(self, found: Any) -> None:
        can_drop = f", or to null to {self._null}" if self._null else ""
        if _is_null(found) or found == "":
            remedy = f"Give it a label, or map null{can_drop[4:]}." if can_drop else "Give it a label."
            raise BadValueError("null or a blank cell where a label belongs", remedy)
        raise BadValueError(
            f"the label {found!r}, which is not in `label_names` ({self.label_names})",
            f"Map it to one of them in `label_map`{can_drop}; `label_map` is {self.label_map}.",
        )

    def _refuse_both(self, values: Sequence[Any]) -> None:
        shown = [value for value in values if len(set(self._readings(value).values())) > 1][:SHOWN]
        maps = [
            {value: self.label_names[self._readings(value)[reading]] for value in shown} for reading in ("names", "ids")
        ]
        raise BadValueError(
            f"labels such as {shown[0]!r}, which may be names or ids",
            f"Say which in `label_map`: {maps[0]} or {maps[1]}.",
        )


def _spellings(value: Any) -> list[str]:
    """Return how a file may write a value; null is nothing that a text can be."""
    if _is_null(value):
        return [NULL]
    return [text := str(value), text.lower(), text.upper()] if isinstance(value, bool) else [str(value)]


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_null(value: Any) -> bool:
    return value is None or (isinstance(value, float) and math.isnan(value))
