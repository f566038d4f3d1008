"""Past requests with their answers, and which of them are like a new one.

The search is exact, by scikit-learn's `NearestNeighbors` with the cosine distance: 50,000 past answers are searched in
tens of milliseconds. An index is a folder with `embeddings.safetensors` and `answers.jsonl`.
"""

import gzip
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file
from sklearn.neighbors import NearestNeighbors

from hf_interp.utils.files import new_folder

EMBEDDINGS_NAME, ANSWERS_NAME = "embeddings.safetensors", "answers.jsonl"
USERS = ("user", "customer", "human")
ANSWERERS = ("assistant", "system", "agent")
"""Who may speak in dialogues; `system` is what the Schema-Guided Dialogue data call the assistant."""


@dataclass(frozen=True)
class PastAnswer:
    """What a user asked once, and what the answer was."""

    request: str
    answer: str


@dataclass(frozen=True)
class Similar:
    """A past answer with the cosine between its request and a new one, in [−1, 1]."""

    past: PastAnswer
    similarity: float


class AnswerIndex:
    """Past answers, searched by the embeddings of their requests.

    Args:
        answers: the past answers.
        embeddings: shape (answers, size): the embeddings of their requests.
        encoder: fingerprint of the encoder that made them.

    Raises:
        ValueError: for shapes that do not agree, numbers that are not finite, or no answers at all.
    """

    def __init__(self, answers: Sequence[PastAnswer], embeddings: np.ndarray[Any, Any], encoder: str) -> None:
        if not answers or embeddings.ndim != 2 or len(embeddings) != len(answers):
            raise ValueError(
                f"An index needs past answers and one embedding for each, got {len(answers)} answers and embeddings of "
                f"shape {embeddings.shape}. Build the index again."
            )
        if not np.isfinite(embeddings).all():
            raise ValueError("The embeddings of past requests must be finite. Build the index again.")
        self.answers, self.embeddings, self.encoder = list(answers), embeddings, encoder
        self._neighbors = NearestNeighbors(metric="cosine", algorithm="brute").fit(embeddings)

    def search(self, queries: np.ndarray[Any, Any], top_k: int) -> list[list[Similar]]:
        """The `top_k` most similar past answers (all, if there are fewer) for each query, the most similar first.

        Args:
            queries: shape (queries, size).

        Raises:
            ValueError: if `top_k` is below 1, or the size is not that of the index.
        """
        if top_k < 1:
            raise ValueError(f"`top_k` must be at least 1, got {top_k}.")
        if queries.ndim != 2 or queries.shape[1] != self.embeddings.shape[1]:
            raise ValueError(
                f"Queries must have the shape (queries, {self.embeddings.shape[1]}), got {queries.shape}. Embed them "
                "with the encoder of the index."
            )
        distances, places = self._neighbors.kneighbors(queries, n_neighbors=min(top_k, len(self.answers)))
        return [
            [Similar(self.answers[place], 1.0 - distance) for place, distance in zip(row, far, strict=True)]
            for row, far in zip(places.tolist(), distances.tolist(), strict=True)
        ]

    def save(self, folder: str | Path) -> None:
        """Write the index into a new folder, whole or not at all.

        Raises:
            FileExistsError: if there is something already.
        """
        folder = Path(folder)
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise FileExistsError(f"{str(folder)!r} must not exist, or be an empty folder. Choose another name.")
        with new_folder(folder) as place:
            metadata = {"encoder": self.encoder}
            save_file({"embeddings": np.ascontiguousarray(self.embeddings)}, place / EMBEDDINGS_NAME, metadata=metadata)
            rows = (json.dumps(vars(answer), ensure_ascii=False) + "\n" for answer in self.answers)
            (place / ANSWERS_NAME).write_text("".join(rows), encoding="utf-8")

    @classmethod
    def load(cls, folder: str | Path, encoder: str) -> "AnswerIndex":
        """Read an index.

        Args:
            encoder: fingerprint of the encoder at hand.

        Raises:
            FileNotFoundError: if a file is missing.
            ValueError: if the index was made with another encoder, or is damaged.
        """
        folder = Path(folder)
        for name in (EMBEDDINGS_NAME, ANSWERS_NAME):
            if not (folder / name).is_file():
                raise FileNotFoundError(f"There is no index in {str(folder)!r}: {name} is missing.")
        try:
            with safe_open(folder / EMBEDDINGS_NAME, "numpy") as file:
                made_with = (file.metadata() or {}).get("encoder", "unknown")
                embeddings = file.get_tensor("embeddings")
        except SafetensorError as error:
            raise ValueError(
                f"{str(folder / EMBEDDINGS_NAME)!r} is damaged: {error}. Build the index again."
            ) from error
        if made_with != encoder:
            raise ValueError(
                f"The index in {str(folder)!r} was made with another encoder ({made_with}, not {encoder}). Build it "
                "again with this one, or name the one it was made with (--encoder)."
            )
        return cls(list(read_answers(folder / ANSWERS_NAME, unique=False)), embeddings, made_with)


def read_answers(path: str | Path, *, unique: bool = True) -> Iterator[PastAnswer]:
    """Past answers from JSON Lines (or .gz), each row `{"request": ..., "answer": ...}` or a dialogue.

    A dialogue has `turns` of `speaker` and `text`, or `messages` of `role` and `content`; each of the user's turns is a
    request whose answer is the turn behind it.

    Args:
        unique: leave out repetitions of the same request with the same answer.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: for a row of another form, with its line.
    """
    seen: set[PastAnswer] = set()
    for number, row in enumerate(read_rows(path), 1):
        for answer in _answers_in(row, f"Line {number} of {str(path)!r}"):
            if not unique or answer not in seen:
                seen.add(answer)
                yield answer


def read_rows(path: str | Path) -> Iterator[Mapping[str, Any]]:
    """The rows of a file of JSON Lines (or .gz).

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: for a line that is not a JSON object.
    """
    path = Path(path).expanduser()
    if not path.is_file():
        raise FileNotFoundError(f"There is no file {str(path)!r}.")
    try:
        with gzip.open(path, "rt", encoding="utf-8") if path.suffix == ".gz" else open(path, encoding="utf-8") as file:
            for number, line in enumerate(file, 1):
                try:
                    row = json.loads(line)
                except ValueError:
                    row = None
                if not isinstance(row, dict):
                    raise ValueError(
                        f"Line {number} of {str(path)!r} must be a JSON object, got {line.strip()[:80]!r}."
                    )
                yield row
    except (UnicodeDecodeError, gzip.BadGzipFile, EOFError) as error:
        raise ValueError(f"{str(path)!r} is not a text in UTF-8: {error}.") from error


def _answers_in(row: Mapping[str, Any], where: str) -> list[PastAnswer]:
    if "request" in row and "answer" in row:
        return [PastAnswer(_text(row, "request", where), _text(row, "answer", where))]
    for turns, speaker, text in (("turns", "speaker", "text"), ("messages", "role", "content")):
        if isinstance(row.get(turns), list):
            spoken = [(_text(turn, speaker, where).lower(), _text(turn, text, where)) for turn in row[turns]]
            return [
                PastAnswer(said, answer)
                for (asker, said), (answerer, answer) in pairwise(spoken)
                if asker in USERS and answerer in ANSWERERS
            ]
    raise ValueError(
        f"{where} must hold a `request` and its `answer`, or a dialogue in `turns` (speaker, text) or `messages` "
        f"(role, content), got the fields {list(row)}."
    )


def _text(row: Any, name: str, where: str) -> str:
    value = row.get(name) if isinstance(row, dict) else None
    if not isinstance(value, str):
        raise ValueError(f"{where} must have a text in `{name}`, got {value!r}.")
    return value
