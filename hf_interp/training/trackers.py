"""Messages to experiment trackers beside the logs: the mixture as configuration, pictures at the end.

The scalars (α, shares, passes, losses by corpus) reach whatever `report_to` names through the log of `Trainer`. Here
the plan is put into the run's configuration under `mixture`, and pictures are added to the run after training.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.integrations import TensorBoardCallback


class MixtureTracker(TrainerCallback):
    """Tells the trackers of a run what is mixed; it must come behind their own callbacks.

    `describe` gives the summary of the plan, once training begins, and `callbacks` the callbacks of the trainer.
    """

    def __init__(
        self, describe: Callable[[], Mapping[str, Any]], callbacks: Callable[[], Sequence[TrainerCallback]]
    ) -> None:
        self.describe = describe
        self.callbacks = callbacks
        self.trackio_run: Any = None

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Add the mixture to the configuration of the run."""
        if not state.is_world_process_zero:
            return
        mixture = self.describe()
        if "wandb" in args.report_to:
            import wandb

            if wandb.run is not None:
                wandb.run.config.update({"mixture": mixture}, allow_val_change=True)
        if "trackio" in args.report_to:
            import trackio

            run = trackio.context_vars.current_run.get()
            if run is not None:
                self.trackio_run = run
                trackio.config.update({"mixture": mixture}, allow_val_change=True)
        writer = getattr(_find(self.callbacks(), TensorBoardCallback), "tb_writer", None)
        if writer is not None:
            writer.add_text("mixture", f"```json\n{json.dumps(mixture, indent=2, ensure_ascii=False)}\n```")


def add_picture(trainer: Trainer, name: str, path: str | Path) -> None:
    """Add a picture, a PNG, to the runs of a trainer in its trackers, after training; on the main process."""
    args, callbacks = trainer.args, trainer.callback_handler.callbacks
    if not trainer.is_world_process_zero():
        return
    if "wandb" in args.report_to:
        import wandb

        if wandb.run is not None:
            wandb.run.log({name: wandb.Image(str(path))})
    if "trackio" in args.report_to:
        _add_to_trackio(args, getattr(_find(callbacks, MixtureTracker), "trackio_run", None), name, path)
    folder = getattr(_find(callbacks, TensorBoardCallback), "logging_dir", None)
    if folder is not None:
        import matplotlib.image
        from torch.utils.tensorboard import SummaryWriter

        with SummaryWriter(log_dir=folder) as writer:
            writer.add_image(name, matplotlib.image.imread(path)[..., :3], trainer.state.global_step, dataformats="HWC")


def _add_to_trackio(args: TrainingArguments, run: Any, name: str, path: str | Path) -> None:
    """Take up Trackio's run, which has ended with training, once more."""
    if run is None:
        return
    import trackio

    # it would be taken up with an empty configuration
    told = {key: value for key, value in dict(run.config).items() if not key.startswith("_")}
    place = {"space_id": args.trackio_space_id, "private": args.hub_private_repo}
    trackio.init(project=args.project, name=run.name, config=told, resume="must", **place)
    trackio.log({name: trackio.Image(str(path))})
    trackio.finish()


def _find(callbacks: Sequence[TrainerCallback], kind: type[TrainerCallback]) -> Any:
    return next((each for each in callbacks if isinstance(each, kind)), None)
