"""The dial of the loss: what ties the trained model M_θ to the pretrained M₀ while α is small.

With the weight w(t) = (1 − α(t))·strength, α being the data's or one of its own,

- distill adds to the loss ℓ the divergence of the predictions at a temperature T: L = ℓ + w·T²·KL. Its gradient is
  that of labels which are partly M₀'s predictions.
- l2sp moves the weights after each optimizer step at learning rate η: θ ← θ + c·(θ₀ − θ) with c = ηw / (1 + ηw), which
  is M_{1−c}, the interpolation of θ and θ₀, and the minimum of ½‖θ' − θ‖² + ½ηw·‖θ' − θ₀‖² over θ'. No strength makes
  it diverge, and it enters neither the moments of the optimizer nor the clipping of gradients.

The loss itself is not scaled by α; the share of the data is.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, NamedTuple

import torch
from torch import nn
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.integrations import is_deepspeed_zero3_enabled

from hf_interp.losses.kl_divergence import kl_divergence
from hf_interp.losses.l2sp import (
    Pair,
    adapter_pairs,
    implicit_share,
    matching_names,
    paired_weights,
    pull,
    square_distance,
)
from hf_interp.losses.per_example import IGNORE_INDEX, ContrastiveLoss, is_ctc, per_example_loss
from hf_interp.losses.ref_model import (
    check_adapters_off,
    fingerprint,
    freeze,
    frozen_copy,
    logits_of,
    predict,
    unwrap_peft,
)
from hf_interp.mixture.schedules import AlphaSchedule, progress_of
from hf_interp.weights.adapter_kinds import is_peft_model

SUM, COUNT = range(2)  # rows of what is summed up between logs
KEYS = ("anchor_loss", "loss_gap", "loss_gap_general", "loss_gap_domain")  # its columns


class Reference(NamedTuple):
    """Predictions of M₀ for a micro-batch, with what is known of that."""

    logits: torch.Tensor
    labels: torch.Tensor
    shift_labels: bool
    """Whether position i predicts label i + 1."""
    is_general: torch.Tensor | None
    """Which examples are of general corpora, in a mixture."""
    step: int


class Anchor(TrainerCallback):
    """Ties a run to M₀ and measures how far it has gone from there.

    M₀ is `ref_model`; without one it is a copy of the model as it is now (for l2sp alone, of the weights that are
    trained), or the model with its adapters off.

    Args:
        args: the settings, an `InterpolationConfig`.
        model: the model that is trained.
        ref_model: the pretrained model, if it is another one.
        alpha_schedule: α over progress where neither `args` have one for the anchor nor a mixture has one.
        distills: whether corpora train M₀'s predictions in place of their labels.
    """

    def __init__(
        self,
        args: TrainingArguments,
        model: nn.Module,
        ref_model: nn.Module | None = None,
        alpha_schedule: AlphaSchedule | None = None,
        *,
        distills: bool = False,
    ) -> None:
        self.args = args
        self.distills = distills
        self.ref_model = freeze(ref_model) if ref_model is not None else None
        self.is_own_model = ref_model is None  # M₀ comes from the trained model itself
        self.without_adapters = self.is_own_model and is_peft_model(model)
        self.start_weights: dict[str, torch.Tensor] = {}
        self.targets: dict[int, Pair] = {}  # by the identity of the parameter
        self.kept: list[torch.Tensor] | None = None  # what M₀ says, while a micro-batch is seen more than once
        self._given_schedule = alpha_schedule
        self._alpha_of: Callable[[int], float] = lambda step: 0.0  # until training begins
        self._saved_marks: list[Any] = []
        self.clear()

    @property
    def is_tied(self) -> bool:
        """Whether the run is tied to M₀, and not only measured."""
        return self.args.anchor is not None

    @property
    def pulls(self) -> bool:
        """Whether the weights are moved towards those of M₀."""
        return self.args.anchor == "l2sp"

    @property
    def needs_predictions(self) -> bool:
        """Whether M₀ is run, and not only its weights looked at."""
        return self.args.anchor == "distill" or self.args.log_loss_gap or self.distills

    def capture(self, model: nn.Module) -> None:
        """Keep the model as it is now as M₀, unless there is another."""
        if not self.is_own_model or self.without_adapters:
            return
        if self.needs_predictions:
            self.ref_model = frozen_copy(model)
        elif not is_peft_model(model):
            self.start_weights = {
                name: parameter.detach().clone()
                for name, parameter in model.named_parameters()
                if parameter.requires_grad
            }

    def weight(self, step: int) -> float:
        """Return (1 − α)·strength at a step."""
        return (1 - self._alpha_of(step)) * self.args.anchor_strength

    def predict(
        self,
        model: nn.Module,
        inputs: Mapping[str, Any],
        is_general: torch.Tensor | None,
        step: int,
        autocast: AbstractContextManager[Any],
        *,
        shift_labels: bool,
    ) -> Reference | None:
        """Return what M₀ predicts for a micro-batch of an optimizer step; `None` if nothing asks for it."""
        is_asked = self.args.anchor == "distill" and self.weight(step) > 0
        if is_asked and self.args.anchor_on == "general":
            is_asked = is_general is not None and bool(is_general.any())
        if not is_asked and not self.args.log_loss_gap:
            return None
        labels = inputs.get("labels")
        if labels is None or (self.args.anchor == "distill" and labels.is_floating_point()):
            raise ValueError(
                "Predictions are compared with M₀'s where there are labels, for distill those of classes; got "
                f'{"none" if labels is None else "numbers"}. Use `anchor="l2sp"` without `log_loss_gap`.'
            )
        shifted = inputs.get("shift_labels")
        targets, shift_labels = (labels, shift_labels) if shifted is None else (shifted, False)
        return Reference(self.ref_logits(model, inputs, autocast), targets, shift_labels, is_general, step)

    def ref_logits(
        self, model: nn.Module, inputs: Mapping[str, Any], autocast: AbstractContextManager[Any]
    ) -> torch.Tensor:
        """Return the logits of M₀ for inputs of the model that is trained."""
        if self.kept:
            return self.kept[0]
        teacher = model if self.without_adapters else self.ref_model
        assert teacher is not None
        found = predict(teacher, inputs, without_adapters=self.without_adapters, autocast=autocast)
        if self.kept is not None:
            self.kept.append(found)
        return found

    def tie(
        self, loss: torch.Tensor, outputs: Any, reference: Reference, num_items: torch.Tensor | float | None
    ) -> torch.Tensor:
        """Return the loss of a micro-batch with what the anchor adds to it; on the way, the gap is noted.

        `num_items` is by how much the sum over labels is divided; `None` for a mean over the micro-batch.
        """
        ref_logits, labels, shift_labels, is_general, step = reference
        if self.args.log_loss_gap:
            self._note_gap(outputs, reference)
        weight = self.weight(step)
        if self.args.anchor != "distill" or weight == 0:
            return loss
        logits = logits_of(outputs)
        if logits.shape[:-1] != labels.shape or ref_logits.shape[:-1] != labels.shape:
            raise ValueError(
                f'anchor="distill" needs one prediction for each label, got logits of shape {tuple(logits.shape)}, of '
                f"M₀ {tuple(ref_logits.shape)}, for labels of shape {tuple(labels.shape)}."
            )
        chosen = has_label = has_label_to_predict(labels, shift_labels=shift_labels)
        if self.args.anchor_on == "general" and is_general is not None:
            chosen = has_label & is_general.reshape(-1, *[1] * (labels.dim() - 1))
        temperature = self.args.anchor_temperature
        found = temperature**2 * kl_divergence(
            logits,
            ref_logits,
            rows=chosen.flatten().nonzero().flatten(),
            temperature=temperature,
            direction=self.args.anchor_direction,
        )
        self._add("anchor_loss", found)
        return loss + weight * found.sum() / (has_label.sum().clamp(min=1) if num_items is None else num_items)

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Settle α, put M₀ where it is needed, and find what is to be pulled."""
        own = self.args.build_anchor_schedule(state.max_steps)
        self._alpha_of = alpha_of_steps(self.args, state, kwargs["train_dataloader"], own, self._given_schedule)
        shared: list[torch.Tensor] = []  # all processes get the first one's, as those of the model that is trained
        if self.ref_model is not None:
            is_spread = len(getattr(self.ref_model, "hf_device_map", None) or {}) > 1
            if not is_spread and any(parameter.device != args.device for parameter in self.ref_model.parameters()):
                self.ref_model.to(args.device)
            shared += [*self.ref_model.parameters(), *self.ref_model.buffers()]
        if self.pulls:
            pairs = self.find_pairs(kwargs["model"])
            self.targets = {id(parameter): (name, parameter, target.to(parameter)) for name, parameter, target in pairs}
            shared += [target for _, _, target in self.targets.values() if not is_peft_model(kwargs["model"])]
            self._check_optimizer(kwargs["optimizer"], pairs)
        for tensor in shared if args.world_size > 1 else ():
            torch.distributed.broadcast(tensor.detach(), src=0)
        self._compare_with_checkpoints()

    def on_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Pull, if that is the anchor; not after a step that was left out because of an overflow."""
        if not self.targets or kwargs["optimizer"].step_was_skipped:
            return
        weight = self.weight(state.global_step)
        for group in kwargs["optimizer"].param_groups:
            for parameter in group["params"]:
                if id(parameter) in self.targets:
                    _, _, target = self.targets[id(parameter)]
                    pull(parameter, target, implicit_share(float(group["lr"]) * weight))

    def find_pairs(self, model: nn.Module) -> list[Pair]:
        """Return what is pulled, and where to."""
        excluded = matching_names(model, self.args.anchor_exclude or [])
        if is_peft_model(model):
            pairs = adapter_pairs(model, excluded)
        else:
            weights = self.start_weights if self.ref_model is None else dict(self.ref_model.named_parameters())
            pairs = paired_weights(model, weights, excluded)
        for name, parameter, _ in pairs:
            if parameter.dtype not in (torch.float32, torch.float64):
                raise ValueError(
                    f'anchor="{self.args.anchor}" needs weights in float32, got {parameter.dtype} for {name!r}: a '
                    'small pull would be rounded away. Load the model with `dtype="float32"`, and train with '
                    "`bf16=True`."
                )
        return pairs

    def clear(self) -> None:
        """Forget what has been summed up."""
        self.sums = torch.zeros(2, len(KEYS), dtype=torch.float64)
        if self.args.device.type != "mps":  # which has no float64
            self.sums = self.sums.to(self.args.device)

    def take_log(self, step: int, reduce: Callable[[torch.Tensor], torch.Tensor]) -> dict[str, float]:
        """Return what to log after a step: the weight, and the means since the last log of what there was."""
        found = {} if self.args.anchor is None else {"anchor_weight": self.weight(step)}
        sums = reduce(self.sums).tolist()
        self.sums.zero_()
        found |= {key: total / count for key, total, count in zip(KEYS, sums[SUM], sums[COUNT], strict=True) if count}
        if self.pulls:
            pairs = self.targets.values()
            found["anchor_loss"] = 0.5 * sum(square_distance(parameter, target) for _, parameter, target in pairs)
        return found

    def state_dict(self) -> dict[str, Any]:
        """Return what is summed up, and what M₀ is, for a comparison on resume."""
        return {"sums": self.sums.tolist(), "mark": self._mark()}

    def begin(self, rank_states: Iterable[Mapping[str, Any]]) -> None:
        """Begin anew, with the sums that processes have left in a checkpoint."""
        self.clear()
        for state in (each["anchor"] for each in rank_states if "anchor" in each):
            self.sums += torch.tensor(state["sums"], dtype=self.sums.dtype, device=self.sums.device)
            self._saved_marks.append(state["mark"])

    def _add(self, key: str, values: torch.Tensor) -> None:
        column = KEYS.index(key)
        self.sums[SUM, column] += values.detach().sum().to(self.sums)
        self.sums[COUNT, column] += values.numel()

    def _note_gap(self, outputs: Any, reference: Reference) -> None:
        """Note ℓ(M_θ) − ℓ(M₀) of each example."""
        ref_logits, labels, shift_labels, is_general, _ = reference
        losses = per_example_loss({"logits": logits_of(outputs)}, labels, shift_labels=shift_labels)
        ref_losses = per_example_loss({"logits": ref_logits}, labels, shift_labels=shift_labels)
        if losses is None or ref_losses is None:
            raise ValueError(
                f"`log_loss_gap` needs a loss for each example, which cannot be told from labels of shape "
                f"{tuple(labels.shape)} and logits of shape {tuple(ref_logits.shape)}. Leave it out."
            )
        gap = losses.detach() - ref_losses
        self._add("loss_gap", gap)
        if is_general is not None:
            self._add("loss_gap_general", gap[is_general])
            self._add("loss_gap_domain", gap[~is_general])

    def _check_optimizer(self, optimizer: Any, pairs: Sequence[Pair]) -> None:
        held = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
        for name, parameter, _ in pairs:
            if parameter.requires_grad and id(parameter) not in held:
                raise ValueError(
                    f'anchor="l2sp" takes the learning rate of each weight from the optimizer, which does not have '
                    f"{name!r}. Use another `optim`, or name it in `anchor_exclude`."
                )

    def _mark(self) -> list[str]:
        """Return the fingerprints of M₀'s names and values; a model with its adapters off has none to compare."""
        tensors: dict[str, torch.Tensor] = {}
        if self.pulls:
            tensors = {name: target for name, _, target in self.targets.values()}
        elif self.ref_model is not None:
            tensors = dict(self.ref_model.named_parameters())
        return [fingerprint(dict.fromkeys(tensors, torch.zeros(0))), fingerprint(tensors)]

    def _compare_with_checkpoints(self) -> None:
        marks, self._saved_marks = self._saved_marks, []
        names, values = self._mark() if marks else ("", "")
        if any(mark[0] == names and mark[1] != values for mark in marks):
            raise ValueError(
                "The pretrained model M₀ is not the one with which the run was begun. Give the trainer the "
                "pretrained model, into which the checkpoint is then loaded, or pass it as `ref_model`."
            )


def alpha_of_steps(
    args: Any, state: TrainerState, loader: Any, own: AlphaSchedule | None, given: AlphaSchedule | None
) -> Callable[[int], float]:
    """Return α by step of what is added to a loss: by its `own` schedule, else by the plan of a mixture, else by
    the schedule that is `given`, else by that of the settings.
    """
    plan: Any = getattr(loader.dataset, "plan", None)
    if own is None and plan is not None:
        found: Callable[[int], float] = plan.alpha
        return found
    schedule = own or given or args.build_alpha_schedule(state.max_steps)
    return lambda step: schedule(progress_of(step, state.max_steps))


def has_label_to_predict(labels: torch.Tensor, *, shift_labels: bool) -> torch.Tensor:
    """Return which positions predict a label: position i label i, or label i + 1."""
    predicted = nn.functional.pad(labels[:, 1:], (0, 1), value=IGNORE_INDEX) if shift_labels else labels
    return predicted.ne(IGNORE_INDEX)


def check_anchor(trainer: Trainer, ref_model: nn.Module | None, *, has_mixture: bool, distills: bool = False) -> None:
    """Refuse what an anchor cannot do, before anything is computed."""
    args = trainer.args
    kind, has_gap, model = args.anchor, args.log_loss_gap, trainer.model
    if ref_model is model:
        raise ValueError("`ref_model` must be another object than `model`: the one is trained, the other is not.")
    if args.anchor_on == "general" and not has_mixture:
        raise ValueError('anchor_on="general" needs a mixture as `train_dataset`, which tells what is general.')
    check_strategy(trainer, "An anchor", with_deepspeed=kind != "l2sp")
    if kind == "distill" and distills:
        raise ValueError(
            'anchor="distill" and corpora with `objective="distill"` both train M₀\'s predictions. Choose one.'
        )
    if kind == "l2sp":
        if ref_model is not None and not has_gap and not distills and is_peft_model(model):
            raise ValueError(
                f'anchor="{kind}" pulls adapters to where they add nothing and has no use for a `ref_model`. Leave it '
                "out."
            )
        if not is_peft_model(model) and getattr(model, "_hf_peft_config_loaded", False):
            raise ValueError(
                f'anchor="{kind}" needs a `PeftModel`. Use `peft.get_peft_model` in place of `add_adapter`.'
            )
        if str(args.optim).rpartition(".")[2].lower().startswith("schedule_free"):
            raise ValueError(
                f'anchor="{kind}" cannot pull the averages of a schedule-free optimizer. Use another `optim`.'
            )
    if kind == "distill" or has_gap or distills:
        if is_ctc(unwrap_peft(model)):
            raise ValueError(
                "distill and `log_loss_gap` compare a prediction for each label, which CTC has not. Use "
                "`anchor: l2sp`, or labels in place of `objective: distill`."
            )
        if isinstance(trainer.compute_loss_func, ContrastiveLoss):
            raise ValueError(
                "Distilling and `log_loss_gap` need logits over classes, which pairs of images and texts have none of. "
                'Use anchor="l2sp".'
            )
        if ref_model is None and is_peft_model(model):
            check_adapters_off(model)
        if ref_model is not None and unwrap_peft(model).get_output_embeddings() is None:  # no language model
            before, now = (getattr(each.config, "num_labels", None) for each in (ref_model, model))
            if before != now:
                raise ValueError(f"`ref_model` must have the {now} labels of the model, got {before}.")
        check_logits_are_kept(args)
    if kind == "distill" or distills:
        check_head(trainer, "distill", 'Use anchor="l2sp"')


def check_logits_are_kept(args: TrainingArguments) -> None:
    """Raise where a kernel leaves no logits to compare."""
    if args.use_liger_kernel and (args.liger_kernel_config or {}).get("fused_linear_cross_entropy", True):
        raise ValueError(
            "Liger's fused cross entropy leaves no logits to compare. Set `liger_kernel_config` to "
            '{"fused_linear_cross_entropy": false, "cross_entropy": true}.'
        )


def check_head(trainer: Trainer, what: str, remedy: str) -> None:
    """Raise unless the model predicts a distribution over classes."""
    config, name = trainer.model.config, type(unwrap_peft(trainer.model)).__name__
    problem = getattr(config, "problem_type", None)
    if name.endswith("ForSequenceClassification") and problem is None and config.num_labels == 1:
        problem = "regression"
    if problem in ("regression", "multi_label_classification"):
        raise ValueError(f"{what} needs a distribution over classes, got {problem}. {remedy}.")
    if "labels" not in trainer.label_names:
        raise ValueError(
            f"{what} needs a model with `labels`, got {name} with {', '.join(trainer.label_names)}. {remedy}."
        )


def check_strategy(trainer: Trainer, what: str, *, with_deepspeed: bool) -> None:
    """Raise unless every process has the whole model; `what` needs it, and may get on with DeepSpeed's stage 2."""
    args = trainer.args
    if args.n_gpu > 1:
        raise ValueError(
            f"{what} needs one process for each GPU, got one for {args.n_gpu}. Start with `accelerate launch`."
        )
    if args.fsdp or trainer.is_fsdp_enabled or getattr(trainer.model, "is_distributed_loading_by_transformers", False):
        raise ValueError(f"{what} needs the whole model in every process, which FSDP divides. Use DDP.")
    if trainer.get_tp_size() * trainer.get_cp_size() * trainer.get_sp_size() > 1:
        raise ValueError(f"{what} needs whole sequences and weights in every process. Use DDP.")
    if trainer.is_deepspeed_enabled and (not with_deepspeed or is_deepspeed_zero3_enabled()):
        raise ValueError(
            "DeepSpeed keeps or divides the weights itself, so "
            + (
                "M₀ cannot be run beside them at ZeRO stage 3. Use stage 2 or DDP."
                if with_deepspeed
                else f"{what} cannot reach them. Use DDP."
            )
        )
