"""TALLRec's rows as pairs: a user's history and a candidate.

    python recipes/recommendation/pairs.py TALLRec/data/movie/train.json data/tallrec/movie_train.jsonl

reads TALLRec's own files (a JSON list of `instruction`, `input`, `output`), or JSON lines (also .gz) with
`history_liked`, `history_disliked`, `candidate` and `label_name`. Each line written has `history` ("Likes: ...
Dislikes: ..."), `candidate`, `label` ("like" or "dislike"), and `history_liked` alone, to tell users apart by.
"""

import argparse
import gzip
import json
import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from hf_interp.utils.console import run_command

_INPUT = re.compile(
    r"User Preference: (?P<liked>.*)\nUser Unpreference: (?P<disliked>.*)\n"
    r'Whether the user will like the target (?:movie|book) "(?P<candidate>.*)"\?\s*',
    re.DOTALL,
)
_ANSWERS = {"Yes.": "like", "No.": "dislike"}


def history_text(liked: str, disliked: str, titles: int | None = None) -> str:
    """A user's history as the model reads it; quotation marks around the titles are left out, to save tokens.

    Args:
        liked, disliked: quoted titles, each perhaps with its author, the latest last.
        titles: keep so many of each, the latest; by default all.

    >>> history_text('"Fargo (1996)", "Alien (1979)"', "")
    'Likes: Fargo (1996); Alien (1979). Dislikes: nothing.'
    >>> history_text('"Fargo (1996)", "Alien (1979)"', "", titles=1)
    'Likes: Alien (1979). Dislikes: nothing.'
    """
    return f"Likes: {_titles(liked, titles)}. Dislikes: {_titles(disliked, titles)}."


def pair_of(row: dict[str, Any], titles: int | None = None) -> dict[str, str]:
    """One row of either source as `history`, `candidate`, `label` and `history_liked`.

    >>> pair_of({"history_liked": '"Alien (1979)"', "history_disliked": "", "candidate": "Fargo", "label_name": "like"})
    {'history': 'Likes: Alien (1979). Dislikes: nothing.', 'candidate': 'Fargo', 'label': 'like', 'history_liked': '"Alien (1979)"'}

    Raises:
        ValueError: for a row of another form.
    """  # noqa: E501
    if "input" in row and "output" in row:
        found = _INPUT.fullmatch(row["input"])
        if found is None or row["output"] not in _ANSWERS:
            raise ValueError(
                f"A row must hold a preference, an unpreference, a target and the answer Yes. or No., got {row}."
            )
        liked, disliked, candidate = found["liked"], found["disliked"], found["candidate"]
        label = _ANSWERS[row["output"]]
    elif {"history_liked", "history_disliked", "candidate", "label_name"} <= set(row):
        liked, disliked, candidate = row["history_liked"], row["history_disliked"], row["candidate"]
        label = row["label_name"]
    else:
        raise ValueError(
            "A row must have `input` and `output`, or `history_liked`, `history_disliked`, `candidate` and "
            f"`label_name`, got {sorted(row)}."
        )
    return {
        "history": history_text(liked, disliked, titles),
        "candidate": candidate.replace('"', "").strip(),
        "label": label,
        "history_liked": liked,
    }


def read_rows(path: Path) -> Iterator[dict[str, Any]]:
    """The rows of a JSON list, or of JSON lines, each also compressed as .gz.

    Raises:
        ValueError: for what is neither, with the line.
    """
    with gzip.open(path, "rt", encoding="utf-8") if path.suffix == ".gz" else path.open(encoding="utf-8") as file:
        if path.name.removesuffix(".gz").endswith(".json"):
            yield from json.load(file)
            return
        for number, line in enumerate(file, 1):
            try:
                yield json.loads(line)
            except ValueError as error:
                raise ValueError(f"Line {number} of {str(path)!r} is not JSON: {error}.") from error


def prepare(source: Path, target: Path, titles: int | None = None) -> int:
    """Write the pairs of `source` into `target`, and say how many."""
    lines = [json.dumps(pair_of(row, titles), ensure_ascii=False) + "\n" for row in read_rows(source)]
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text("".join(lines), encoding="utf-8")
    return len(lines)


def _titles(quoted: str, most: int | None) -> str:
    """A list of quoted titles, each perhaps with its author, without the quotation marks."""
    titles = quoted.split(', "')
    return "; ".join(titles[-most:] if most else titles).replace('"', "").strip() or "nothing"


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns the exit status."""
    parser = argparse.ArgumentParser(description="Turn TALLRec's rows into pairs of a history and a candidate.")
    parser.add_argument("source", type=Path, help="a file of TALLRec: .json, .jsonl, .jsonl.gz")
    parser.add_argument("target", type=Path, help="the JSON lines to write")
    parser.add_argument("--titles", type=int, help="keep so many likes and dislikes, the latest (default: all)")
    args = parser.parse_args(argv)
    if args.titles is not None and args.titles < 1:
        parser.error(f"--titles must be at least 1, got {args.titles}")

    def run() -> None:
        print(f"{prepare(args.source, args.target, args.titles)} pairs are in {args.target}.")

    return run_command(run)


if __name__ == "__main__":
    sys.exit(main())
