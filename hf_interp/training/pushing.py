"""Pushing a mixture's run from its trainer: our card, and nothing of the machine beside the model."""

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi, ModelCard

from hf_interp.losses.ref_model import unwrap_peft
from hf_interp.reporting.card import CARD_NAME, TAGS, CardMetadata, save_card
from hf_interp.reporting.hub import push_run, render_card
from hf_interp.reporting.plots import plot_run
from hf_interp.training.integrations import traits_of
from hf_interp.utils.run_folder import RUN_PLOT_NAME

RENAMED = {"finetuned_from": "base_model"}
"""Names that the cards of `Trainer` have for what ours call otherwise."""
METADATA = ("tags", "license", "language", "base_model")


def prepare_pushing(trainer: Any) -> str | None:
    """Tag the model; return what to warn of if the trainer pushes to the Hub."""
    if hasattr(base := unwrap_peft(trainer.model), "add_model_tags"):
        base.add_model_tags(list(TAGS))
    return check_strategy(trainer.args.hub_strategy) if trainer.args.push_to_hub else None


def check_strategy(strategy: Any) -> str | None:
    """Refuse a `hub_strategy` that pushes checkpoints of a mixture's run; return what to warn of, if anything."""
    strategy = str(getattr(strategy, "value", strategy))
    if strategy in ("checkpoint", "all_checkpoints"):
        raise ValueError(
            f"`hub_strategy` must be end or every_save over a mixture, got {strategy}: a checkpoint holds a pickle of "
            "all settings, paths and `hub_token` among them. Set `hub_strategy` to end."
        )
    if strategy == "every_save":
        return "Over a mixture nothing is pushed before the end of training. Set `hub_strategy` to end to say so too."
    return None


def write_card(trainer: Any, metadata: Mapping[str, Any]) -> None:
    """Write the card of a trainer's run into its `output_dir`, beside one of the trainer's own that is there.

    Of `metadata`, arguments of `create_model_card`, `tags`, `license`, `language` and `finetuned_from` count.
    """
    folder = Path(trainer.args.output_dir)
    card = render_card(folder, repo_id=trainer.hub_model_id, metadata=_metadata(metadata))
    if traits_of(type(trainer)).has_own_card:
        card = beside(ModelCard.load(folder / CARD_NAME), card)
    save_card(card, folder / CARD_NAME)


def push_trained_run(
    trainer: Any,
    commit_message: str | None = "End of training",
    blocking: bool = True,
    token: str | None = None,
    revision: str | None = None,
    *,
    private: bool | None = None,
    **metadata: Any,
) -> Any:
    """Save the model of a trainer, draw its run, write its card, and push what lies in its `output_dir`.

    The model is M_θ. If M_α lies in the folder `interpolated` inside, it goes to the default branch, and M_θ to the
    branch `finetuned` (see `hf_interp.reporting.hub.push_run`).

    Args:
        trainer: it has been trained.
        commit_message: of the push.
        blocking: wait for the end of the push; else return a future of the `PushReport`.
        token, revision, private: those of the trainer's settings by default.
        metadata: arguments of `create_model_card`.
    """
    args = trainer.args
    trainer.callback_handler.on_push_begin(args, trainer.state, trainer.control)
    trainer.save_model(_internal_call=True)
    if not trainer.is_world_process_zero():
        return None
    given = metadata.pop("tags", None) or []
    model_tags = getattr(unwrap_peft(trainer.model), "model_tags", None) or []
    metadata["tags"] = list(dict.fromkeys([*([given] if isinstance(given, str) else given), *model_tags]))
    plot_run(trainer.results(), Path(args.output_dir) / RUN_PLOT_NAME)
    trainer.create_model_card(**metadata)
    settings: dict[str, Any] = {
        "commit_message": commit_message,
        "private": args.hub_private_repo if private is None else private,
        "token": token or args.hub_token,
        "revision": revision or args.hub_revision,
        "card": Path(args.output_dir) / CARD_NAME if traits_of(type(trainer)).has_own_card else None,
        "metadata": _metadata(metadata),
    }
    place = trainer.hub_model_id or args.hub_model_id or Path(args.output_dir).absolute().name
    push = push_run if blocking else partial(HfApi().run_as_future, push_run)
    return push(args.output_dir, place, **settings)


def beside(card: ModelCard, ours: ModelCard) -> ModelCard:
    """Return another trainer's card with ours below it: its metadata wins, but for the tags, which are joined."""
    for key, value in ours.data.__dict__.items():
        if value is not None and card.data.get(key) is None:
            card.data[key] = value
    card.data["tags"] = list(dict.fromkeys([*(card.data.get("tags") or []), *ours.data["tags"]]))
    _, _, body = ours.text.strip().partition("\n")  # without its title
    return ModelCard(f"---\n{card.data.to_yaml()}\n---\n{card.text.rstrip()}\n\n# Domain adaptation\n{body}\n")


def _metadata(kwargs: Mapping[str, Any]) -> CardMetadata:
    """Return what our card takes of the arguments of `create_model_card`."""
    named = {RENAMED.get(key, key): value for key, value in kwargs.items() if value is not None}
    found = {key: value for key, value in named.items() if key in METADATA}
    if isinstance(found.get("tags"), str):
        found["tags"] = [found["tags"]]
    return CardMetadata(**found)
