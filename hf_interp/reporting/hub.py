"""Pushing runs to the Hub: M_α on the default branch and M_θ on a branch beside it, with results and card. No torch.

What is pushed is staged in a folder of its own: the files of the model by name, results without local paths and
secrets, pictures, and the card. Nothing else of the run's folder leaves the machine, and nothing in it is changed.
"""

import json
import re
import shutil
import tempfile
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi, ModelCard, get_token
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, OfflineModeIsEnabled
from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

from hf_interp.reporting.card import CARD_NAME, FINETUNED_REVISION, CardMetadata, model_card, save_card
from hf_interp.reporting.curve import find_curve, short_alpha
from hf_interp.reporting.results import blamed_on, load_comparison, load_run_results
from hf_interp.utils.files import read_json, read_text, write_json
from hf_interp.utils.model_files import WEIGHT_FILES, matches, model_files, weights_fingerprint
from hf_interp.utils.redaction import basename, find_secrets, is_local, local_paths, redact_paths, redact_secrets
from hf_interp.utils.run_folder import (
    ADAPTER_CONFIG_NAME,
    CURVE_NAME,
    CURVE_PLOT_NAME,
    INTERPOLATED_NAME,
    INTERPOLATION_NAME,
    LOCK_NAME,
    RESULTS_NAME,
    RUN_PLOT_NAME,
)

MAIN_REVISION = "main"
TRAINING_ARGS_NAME = "training_args.bin"
COMPARISON_NAME = "comparison.json"
"""Name of the results of a comparison in the repository."""

SETTINGS_FILES = ("config.json", "adapter_config.json", "tokenizer_config.json", INTERPOLATION_NAME)
"""JSON files of a model that may hold paths."""

STALE = (
    "model.safetensors",
    "model-*-of-*.safetensors",
    "model.safetensors.index.json",
    "adapter_model.safetensors",
    "adapter_config.json",
    "config.json",
    "generation_config.json",
    "objective_heads/*",
    TRAINING_ARGS_NAME,
    INTERPOLATION_NAME,
    CURVE_NAME,
    CURVE_PLOT_NAME,
    COMPARISON_NAME,
)
"""Files that an earlier push may have left, over which loading would trip or which tell of another run."""

OWN_FILES = (CARD_NAME, RESULTS_NAME, RUN_PLOT_NAME, CURVE_NAME, CURVE_PLOT_NAME, INTERPOLATION_NAME)
SMALL = 1 << 24  # bytes up to which a file that is no model is searched for secrets


@dataclass(frozen=True, kw_only=True)
class PushReport:
    """Account of what `push_run` did.

    Args:
        url: the repository.
        commits: the last commit by revision.
        files: what each revision holds of the run.
        left_out: files and folders of the run that stayed on the machine.
        notes: what a user should know.
    """

    url: str
    commits: dict[str, str]
    files: dict[str, list[str]]
    left_out: list[str]
    notes: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        lines = [self.url]
        for revision, commit in self.commits.items():
            lines.append(f"{revision}: {commit[:12]}, {', '.join(self.files[revision])}")
        if self.left_out:
            lines.append(f"Not pushed: {', '.join(self.left_out)}.")
        return "\n".join([*lines, *self.notes])


def push_run(
    folder: str | Path,
    repo_id: str,
    *,
    private: bool | None = None,
    token: str | None = None,
    revision: str | None = None,
    commit_message: str | None = None,
    comparison: str | Path | None = None,
    card: str | Path | None = None,
    metadata: CardMetadata | None = None,
    training_args: bool = False,
) -> PushReport:
    """Push a trained run.

    If the run has a folder `interpolated`, the revision holds M_α and the branch `finetuned` M_θ; otherwise the
    revision holds M_θ and there is no such branch. Each branch gets one commit, `finetuned` first. After an error the
    same call goes on: what has been uploaded is known by its hash and not sent again.

    Args:
        folder: of the run, with the model and `results.json`.
        repo_id: name of the repository, such as "user/name"; it is made if there is none.
        private: make the repository private. One that is there already and is public is then refused.
        token: by default that of `hf auth login` or of the environment.
        revision: another branch than main, which must exist.
        commit_message: by default "Push M_α" or "Push M_θ".
        comparison: `results.json` of `hf-interp compare`, or its folder, for the card.
        card: a card to push in place of the rendered one.
        metadata: further metadata of the card.
        training_args: push `training_args.bin` too, a pickle that holds every setting of the run, paths and `hub_token`
            among them.

    Raises:
        ValueError: for a folder that is no run, a name that the Hub does not allow, or a file that holds a secret.
        OSError: if the Hub refuses or cannot be reached, with how to go on.
    """
    folder = Path(folder)
    check_run(folder)
    check_links(folder)
    check_weights(folder)
    check_name(repo_id)
    target = revision or MAIN_REVISION
    if target == FINETUNED_REVISION:
        raise ValueError(f"`revision` must not be {target!r}, which is the branch of M_θ. Take another.")
    metadata = metadata or CardMetadata()
    has_both = (folder / INTERPOLATED_NAME).is_dir()
    recipe = load_run_results(folder / RESULTS_NAME).recipe or {}
    secrets = find_secrets(token, get_token(), recipe.get("hub_token"))
    names = [FINETUNED_REVISION, target] if has_both else [target]
    api = HfApi(token=token, library_name="hf_interp")
    commits: dict[str, str] = {}
    files: dict[str, list[str]] = {}
    with tempfile.TemporaryDirectory(prefix="hf_interp_push_") as temporary:
        stages = {name: Path(temporary, str(number)) for number, name in enumerate(names)}
        for name, stage in stages.items():  # everything is staged before anything is sent
            stage_run(
                folder,
                stage,
                repo_id=repo_id,
                interpolated=has_both and name == target,
                comparison=comparison,
                card=card if name == target else None,
                metadata=metadata,
                training_args=training_args,
                secrets=secrets,
            )
        with explained(folder, repo_id, secrets):
            url, repo_id = open_repo(api, repo_id, private)
            if has_both:
                api.create_branch(repo_id, branch=FINETUNED_REVISION, exist_ok=True)
            for name, stage in stages.items():
                message = commit_message or f"Push {'M_α' if has_both and name == target else 'M_θ'}"
                options: dict[str, Any] = {"commit_message": message, "delete_patterns": list(STALE)}
                commits[name] = api.upload_folder(repo_id=repo_id, folder_path=stage, revision=name, **options).oid
                files[name] = sorted(path.relative_to(stage).as_posix() for path in stage.rglob("*") if path.is_file())
    base = (read_json(folder / ADAPTER_CONFIG_NAME) or {}).get("base_model_name_or_path")
    notes = []
    if metadata.base_model is None and isinstance(base, str) and is_local(base):
        notes = [
            f"The adapter's base model {basename(base)!r} was a local folder, which others do not have. If it is on "
            "the Hub, push again and name it (base_model)."
        ]
    remaining = left_out(folder, training_args=training_args)
    return PushReport(url=url, commits=commits, files=files, left_out=remaining, notes=notes)


def stage_run(
    folder: Path,
    stage: Path,
    *,
    repo_id: str,
    interpolated: bool = False,
    comparison: str | Path | None = None,
    card: str | Path | None = None,
    metadata: CardMetadata | None = None,
    training_args: bool = False,
    secrets: Collection[str] = (),
) -> None:
    """Gather what is pushed of a run in a folder; arguments and errors as for `push_run`."""
    base_model = None if metadata is None else metadata.base_model
    stage_model(folder / INTERPOLATED_NAME if interpolated else folder, stage, base_model=base_model, secrets=secrets)
    told = {name: read_json(folder / name) for name in (RESULTS_NAME, CURVE_NAME) if (folder / name).is_file()}
    known = {str(folder.resolve()), *local_paths([*told.values()]), *told[RESULTS_NAME].get("local_paths", [])}
    for name, found in told.items():
        write_json(stage / name, _neutral(found, known, secrets), indent=2)
    if comparison is not None:
        write_json(stage / COMPARISON_NAME, _neutral(asdict(load_comparison(comparison)), known, secrets), indent=2)
    for name in (RUN_PLOT_NAME, CURVE_PLOT_NAME, *([TRAINING_ARGS_NAME] if training_args else [])):
        if (folder / name).is_file():
            shutil.copyfile(folder / name, stage / name)
    if card is None:
        options: dict[str, Any] = {"interpolated": interpolated, "comparison": comparison, "metadata": metadata}
        save_card(render_card(folder, repo_id=repo_id, **options), stage / CARD_NAME)
    else:
        save_card(redact_paths(read_text(card), known), stage / CARD_NAME)
    check_secrets(stage, secrets)


def stage_model(folder: Path, stage: Path, *, base_model: str | None = None, secrets: Collection[str] = ()) -> None:
    """Gather the files of a model in a new folder, with its settings made neutral."""
    for path in model_files(folder):
        to = stage / path.relative_to(folder)
        to.parent.mkdir(parents=True, exist_ok=True)
        settings = read_json(path) if path.name in SETTINGS_FILES else None
        if isinstance(settings, dict):
            changed = _neutral(settings, (), secrets)
            if base_model is not None and "base_model_name_or_path" in changed:
                changed["base_model_name_or_path"] = base_model
            if changed != settings:
                write_json(to, changed, indent=2)
                continue
        shutil.copyfile(path, to)


def left_out(folder: Path, *, training_args: bool = False) -> list[str]:
    """Return names of what lies in the folder of a run and is not pushed."""
    taken = {path.relative_to(folder).parts[0] for path in model_files(folder)}
    taken |= {*OWN_FILES, INTERPOLATED_NAME, LOCK_NAME, *([TRAINING_ARGS_NAME] if training_args else [])}
    return sorted(path.name for path in folder.iterdir() if path.name not in taken)


def render_card(
    folder: str | Path,
    *,
    repo_id: str | None = None,
    interpolated: bool | None = None,
    comparison: str | Path | None = None,
    metadata: CardMetadata | None = None,
) -> ModelCard:
    """Render the card of a run's folder (see `hf_interp.reporting.card.model_card`).

    Args:
        folder: of the run.
        repo_id: where it is, or will be, on the Hub.
        interpolated: whether the card is that of M_α; by default, if the run has a folder `interpolated`. Then M_θ is
            on a branch beside it.
        comparison: `results.json` of `hf-interp compare`, or its folder.
        metadata: what the run does not tell.

    Raises:
        ValueError: for a folder that is no run, or a file that cannot be read.
    """
    folder = Path(folder)
    if repo_id is not None:
        check_name(repo_id)
    check_weights(folder, reads=False)
    has_both = (folder / INTERPOLATED_NAME).is_dir()
    interpolated = has_both if interpolated is None else interpolated
    name = repo_id.rpartition("/")[2] if repo_id else folder.resolve().name
    results = load_run_results(folder / RESULTS_NAME)
    with blamed_on(folder / RESULTS_NAME, folder / CURVE_NAME, *([] if comparison is None else [comparison])):
        return model_card(
            results,
            find_curve(folder),
            None if comparison is None else load_comparison(comparison),
            name=name,
            repo_id=repo_id or _place(folder / INTERPOLATED_NAME if interpolated else folder),
            interpolated=interpolated,
            both=has_both,
            pictures=[picture for picture in (RUN_PLOT_NAME, CURVE_PLOT_NAME) if (folder / picture).is_file()],
            metadata=metadata,
        )


def _place(folder: Path) -> str:
    """Return a folder as it is found from here; of one elsewhere only the end, since a path tells of people."""
    found = folder.resolve()
    here = Path.cwd().resolve()
    if found != here and found.is_relative_to(here):
        return found.relative_to(here).as_posix()
    return "/".join(found.parts[-2:] if found.name == INTERPOLATED_NAME else found.parts[-1:])


def check_run(folder: Path) -> None:
    """Refuse a folder that is none, or lacks results or weights."""
    if not folder.is_dir():
        raise FileNotFoundError(f"There is no folder {str(folder)!r}. Give the `output_dir` of a trained run.")
    if not (folder / RESULTS_NAME).is_file():
        raise ValueError(f"The folder {str(folder)!r} has no {RESULTS_NAME}. Give the `output_dir` of a trained run.")
    for place in (folder, folder / INTERPOLATED_NAME):
        if place.is_dir() and not any(matches(path.name, WEIGHT_FILES) for path in place.iterdir()):
            raise ValueError(f"The folder {str(place)!r} has no weights (*.safetensors). Train the run to its end.")


def check_links(folder: Path) -> None:
    """Refuse a run some of whose files are links to places outside."""
    places = [folder, folder / INTERPOLATED_NAME] if (folder / INTERPOLATED_NAME).is_dir() else [folder]
    names = (*OWN_FILES, TRAINING_ARGS_NAME)
    for path in (*(path for place in places for path in model_files(place)), *(folder / name for name in names)):
        if not path.resolve().is_relative_to(folder.resolve()):
            raise ValueError(
                f"{path.relative_to(folder)} is or lies behind a link that leads out of {str(folder)!r}, so nothing "
                "was pushed. Put a copy in its place."
            )


def check_weights(folder: Path, *, reads: bool = True) -> None:
    """Refuse a run whose curve is not of the weights in its folder, as far as is known without reading them or with."""
    curve = find_curve(folder)
    for name, place in (("finetuned", folder), ("interpolated", folder / INTERPOLATED_NAME)):
        if curve is None or not curve.weights or not place.is_dir():
            continue
        said = curve.weights.get(name)
        if said is None or (reads and said != weights_fingerprint(place)):
            raise ValueError(
                f"{CURVE_NAME} with α = {short_alpha(curve.alpha)} is not of the weights in {str(place)!r}, which are "
                f"of another α or another run. Run `hf-interp curve {folder} --save_model`."
            )


def check_name(repo_id: str) -> None:
    """Refuse a name that the Hub does not allow."""
    try:
        validate_repo_id(repo_id)
    except HFValidationError as error:
        raise ValueError(f"`repo_id` must be such as user/name, got {repo_id!r}: {error}") from None


def check_secrets(stage: Path, secrets: Collection[str]) -> None:
    """Refuse to push a file with a secret in it; weights are not searched."""
    for path in sorted(stage.rglob("*")):
        if not path.is_file() or path.stat().st_size > SMALL or path.suffix == ".safetensors":
            continue
        content = path.read_bytes()
        if any(secret.encode() in content for secret in secrets):
            raise ValueError(
                f"{path.relative_to(stage)} holds a token or another secret of the environment, so nothing was pushed. "
                "Take it out of the file."
            )


def make_repo(repo_id: str, *, private: bool | None = None, token: str | None = None) -> None:
    """Make a repository if there is none, before anything is trained for it; errors as for `push_run`."""
    with explained(None, repo_id, find_secrets(token, get_token())):
        open_repo(HfApi(token=token, library_name="hf_interp"), repo_id, private)


def open_repo(api: HfApi, repo_id: str, private: bool | None) -> tuple[str, str]:
    """Make the repository if there is none, refuse one that should be private and is not; return URL and full name."""
    url = api.create_repo(repo_id, private=private, exist_ok=True)
    if private and not api.model_info(url.repo_id).private:
        raise ValueError(
            f"{url.repo_id} is there already and is public, so nothing was pushed. Make it private on the Hub, or push "
            "without `private`."
        )
    return str(url), url.repo_id


@contextmanager
def explained(folder: str | Path | None, repo_id: str, secrets: Collection[str]) -> Iterator[None]:
    """Say of the Hub's errors what failed, in one line without secrets, and how to push the folder, if any, again."""
    again = "start again" if folder is None else f"push {str(folder)!r} again (`hf-interp push`)"
    try:
        yield
    except OfflineModeIsEnabled:
        raise OSError(f"{repo_id} was not pushed: HF_HUB_OFFLINE is set. Unset it, then {again}.") from None
    except Exception as error:  # the client's own kinds, its HTTP library's, and those of its storage backend
        if isinstance(error, ValueError) and not isinstance(error, (HfHubHTTPError, json.JSONDecodeError)):
            raise  # ours, and what the Hub says of the card's metadata
        if isinstance(error, HfHubHTTPError) and error.response.status_code in (401, 403):
            again = f"log in with a token that may write there (`hf auth login`, or HF_TOKEN), then {again}"
        if folder is not None:
            again += ": the run is as it was, and what has been uploaded is not sent twice"
        message = redact_secrets(_message(error), secrets)
        # not `from error`, which holds the request with its token
        raise OSError(f"{repo_id} was not pushed whole: {message}. {again[0].upper()}{again[1:]}.") from None


def _message(error: BaseException) -> str:
    """Say in one line what an error tells and what it came from (uploads in threads raise a kind of their own)."""
    texts: list[str] = []
    each: BaseException | None = error
    while each is not None:
        text = re.sub(r"\s*For more information check: \S+", ".", str(each)) or type(each).__name__
        text = re.sub(r"(://[^\s?']+)\?[^\s']*", r"\1", text)  # what signs a request is nobody's business
        texts.append(" ".join(text.split()).rstrip("."))
        each = None if isinstance(each, HfHubHTTPError) else each.__cause__
    return ": ".join(dict.fromkeys(texts))


def _neutral(value: Any, known: Collection[str], secrets: Collection[str]) -> Any:
    if isinstance(value, dict) and isinstance(value.get("recipe"), dict):
        value = {**value, "recipe": {key: inner for key, inner in value["recipe"].items() if key != "hub_token"}}
    return redact_secrets(redact_paths(value, known), secrets)
