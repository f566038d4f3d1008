"""Files and folders that are written whole or not at all."""

import json
import os
import shutil
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, Literal

MAX_NAME = 255  # bytes of a name, in the file systems of today


def write_json(path: str | os.PathLike[str], value: Any, *, indent: int | None = None) -> None:
    """Write a JSON file under a temporary name, then rename it; what JSON does not know is written as a text."""
    with new_file(Path(path)) as file:
        json.dump(value, file, indent=indent, default=str, ensure_ascii=False)
        file.write("\n")


@contextmanager
def new_file(path: Path, mode: Literal["w", "wb"] = "w") -> Iterator[IO[Any]]:
    """Open a file to write under a temporary name, renamed at the end; after an error nothing is left of it.

    `mode` is "w" for text in UTF-8, "wb" for bytes.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, mode, encoding=None if mode == "wb" else "utf-8") as file:
            yield file
        os.chmod(temporary, 0o644)  # mkstemp makes it private
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise


def read_json(path: str | os.PathLike[str]) -> Any:
    """Return what is in a JSON file; `None` if it is missing or not whole."""
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def read_text(path: str | os.PathLike[str]) -> str:
    """Return the text in a file; one that is not in UTF-8 is a `ValueError` with its name."""
    try:
        return Path(path).read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{str(path)!r} must be a text in UTF-8, got {error}. Save it in that encoding.") from None


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """Make a folder to fill under a temporary name, renamed at the end; after an error nothing is left of it.

    What a killed process leaves has the temporary name (see `unfinished_folders`).

    Args:
        path: where it is to be; there may be an empty folder.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.parent / f".{path.name}.{uuid.uuid4().hex}"
    temporary.mkdir()
    try:
        yield temporary
        if path.is_dir():
            path.rmdir()
        temporary.rename(path)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def unfinished_folders(path: Path) -> list[str]:
    """Return names of what killed processes, or processes still at work, have left of a folder."""
    return sorted(found.name for found in path.parent.glob(f".{path.name}.*") if len(found.suffix) == 33)


def check_output(path: str) -> None:
    """Refuse a folder that cannot be made or written, before anything is computed; nothing is left of the trial."""
    if not path.strip():
        raise ValueError(f"`output_dir` must name a folder, got {path!r}. Leave it out to write into trainer_output.")
    place = Path(path).absolute()
    existing = next(parent for parent in (place, *place.parents) if os.path.lexists(parent))
    if not existing.is_dir():
        raise ValueError(f"`output_dir` must be a folder, but {str(existing)!r} is a file. Choose another.")
    long = next((part for part in place.parts if len(os.fsencode(part)) > MAX_NAME), None)
    if long is not None:
        raise ValueError(f"`output_dir` has a part of more than {MAX_NAME} bytes: {long!r:.60}. Shorten it.")
    try:
        with tempfile.TemporaryFile(dir=existing):
            pass
    except OSError as error:
        raise ValueError(f"`output_dir` {path!r} cannot be written: {error.strerror}. Choose another.") from error
