"""What a `Trainer` must do otherwise to push a mixture's run: our card, and nothing of the machine beside the model."""

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

from huggingface_hub import HfApi, ModelCard
from transformers import Trainer

from hf_interp.losses.ref_model import base_of
from hf_interp.mixture.corpus import Corpus
from hf_interp.reporting.card import CARD_NAME, TAGS
from hf_interp.reporting.hub import push_run, render_card
from hf_interp.reporting.results import RunResults
from hf_interp.training.integrations import SENTENCE_TRANSFORMERS, TRL, stands_on
from hf_interp.utils.run_folder import RUN_PLOT_NAME

logger = logging.getLogger(__name__)

# For type checkers alone: the host's attributes are there whichever trainer stands behind the mixin.
if TYPE_CHECKING:

    class _Host(Trainer):
        """Any trainer of the host's."""

else:
    _Host = object

RENAMED = {"finetuned_from": "base_model"}
"""What the host's cards call what ours call otherwise."""
METADATA = ("tags", "license", "language", "base_model")


class PushingMixin(_Host):
    """Gives a `Trainer` over a mixture its own card and push."""

    corpora: list[Corpus] | None

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """The host's without a mixture; with one, the card of the run in `args.output_dir` (see
        `hf_interp.reporting.card`).

        TRL and sentence-transformers have cards of their own, to which ours is added.

        Args:
            args, kwargs: as for the host; ours looks at `tags`, `license`, `language` and `finetuned_from`, by name.
        """
        if self.corpora is None or self._has_own_card:
            super().create_model_card(*args, **kwargs)
        if self.corpora is None or not self.is_world_process_zero():
            return
        self.save_results()
        folder = Path(self.args.output_dir)
        card = render_card(folder, repo_id=self.hub_model_id, **_metadata(kwargs))
        if self._has_own_card:
            card = beside(ModelCard.load(folder / CARD_NAME), card)
        card.save(folder / CARD_NAME)

    def push_to_hub(
        self,
        commit_message: str | None = "End of training",
        blocking: bool = True,
        token: str | None = None,
        revision: str | None = None,
        private: bool | None = None,
        **kwargs: Any,
    ) -> Any:
        """The host's without a mixture; with one, `hf_interp.reporting.hub.push_run` of what lies in `args.output_dir`.

        The model is saved there first: it is M_θ. If M_α lies in the folder `interpolated` inside, it goes to the
        default branch, and M_θ to the branch `finetuned`.

        Args:
            commit_message, blocking, token, revision, private: as for the host.
            kwargs: for `create_model_card`.

        Returns:
            a `PushReport`, or a future of one without `blocking`; `None` on other processes than the first.

        Raises:
            ValueError, OSError: as `push_run`.
        """
        if self.corpora is None:
            if private is not None:  # older hosts do not know it
                kwargs["private"] = private
            return super().push_to_hub(commit_message, blocking, token, revision, **kwargs)
        args = self.args
        self.callback_handler.on_push_begin(args, self.state, self.control)
        self.save_model(_internal_call=True)
        if not self.is_world_process_zero():
            return None
        given = kwargs.pop("tags", None) or []
        model_tags = getattr(base_of(self.model), "model_tags", None) or []
        kwargs["tags"] = list(dict.fromkeys([*([given] if isinstance(given, str) else given), *model_tags]))
        self._draw_run()
        self.create_model_card(**kwargs)
        settings: dict[str, Any] = {
            "private": args.hub_private_repo if private is None else private,
            "token": token or args.hub_token,
            "revision": revision or args.hub_revision,
            "commit_message": commit_message,
            "card": Path(args.output_dir) / CARD_NAME if self._has_own_card else None,
            **_metadata(kwargs),
        }
        place = self.hub_model_id or args.hub_model_id or Path(args.output_dir).absolute().name
        if blocking:
            return push_run(args.output_dir, place, **settings)
        return HfApi().run_as_future(push_run, args.output_dir, place, **settings)

    def results(self) -> RunResults:
        """What the run found."""
        raise NotImplementedError

    def save_results(self) -> None:
        """Write what the run found."""
        raise NotImplementedError

    @property
    def _has_own_card(self) -> bool:
        return stands_on(self, TRL) or stands_on(self, SENTENCE_TRANSFORMERS)

    def _check_pushing(self) -> None:
        """Tag the model, and refuse to push checkpoints, which hold a pickle of every setting."""
        base = base_of(self.model)
        if hasattr(base, "add_model_tags"):
            base.add_model_tags(list(TAGS))
        if not self.args.push_to_hub:
            return
        warning = check_strategy(self.args.hub_strategy)
        if warning and self.is_world_process_zero():
            logger.warning(warning)

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        """The host's; of a mixture's run nothing is pushed before its end."""
        if self.corpora is None:
            super()._push_from_checkpoint(checkpoint_folder)

    def _draw_run(self) -> None:
        from hf_interp.reporting.plots import plot_run  # matplotlib takes a while

        plot_run(self.results(), Path(self.args.output_dir) / RUN_PLOT_NAME)


def check_strategy(strategy: Any) -> str | None:
    """Refuse to push checkpoints of a mixture's run; returns what to warn of, if anything.

    Args:
        strategy: the host's `hub_strategy`.

    Raises:
        ValueError: for checkpoint and all_checkpoints.
    """
    strategy = str(getattr(strategy, "value", strategy))
    if strategy in ("checkpoint", "all_checkpoints"):
        raise ValueError(
            f"`hub_strategy` must be end or every_save over a mixture, got {strategy}: a checkpoint holds a pickle of "
            "all settings, paths and `hub_token` among them. Set `hub_strategy` to end."
        )
    if strategy == "every_save":
        return "Over a mixture nothing is pushed before the end of training. Set `hub_strategy` to end to say so too."
    return None


def beside(card: ModelCard, ours: ModelCard) -> ModelCard:
    """A host's card with ours below it: its metadata wins, but for the tags, which are joined."""
    for key, value in ours.data.__dict__.items():
        if value is not None and card.data.get(key) is None:
            card.data[key] = value
    card.data["tags"] = list(dict.fromkeys([*(card.data.get("tags") or []), *ours.data["tags"]]))
    _, _, body = ours.text.strip().partition("\n")  # without its title
    return ModelCard(f"---\n{card.data.to_yaml()}\n---\n{card.text.rstrip()}\n\n# Domain adaptation\n{body}\n")


def _metadata(kwargs: dict[str, Any]) -> dict[str, Any]:
    """What our card takes of the arguments of a host's."""
    named = {RENAMED.get(key, key): value for key, value in kwargs.items() if value is not None}
    found = {key: value for key, value in named.items() if key in METADATA}
    if isinstance(found.get("tags"), str):
        found["tags"] = [found["tags"]]
    return found
