"""Adversarial training: the loss of inputs that are a little off is added to that of the inputs as they are.

The inputs e are token embeddings, or pixels or sound where a model reads no tokens. L is the loss of a run, whatever it
is made of, and w(t) = (1 − α(t))·strength, or α(t)·strength. What is trained is L(e) + w·A.

- fgm (Miyato et al. 2017): A = L(e + δ) with δ = ε·g / ‖g‖, g being the gradient of L at e.
- freelb (Zhu et al. 2020): A is the mean of L(e + δ₁) … L(e + δ_K). δ₁ is noise from U(−ε, ε) / √n over n numbers, and
  δ_{k+1} is δ_k + η·g_k / ‖g_k‖, drawn back into the ball ‖δ‖ ≤ ε.
- r3f (Aghajanyan et al. 2021): A = KL(p‖q) + KL(q‖p) of the predictions p at e and q at e + δ, with δ from U(−ε, ε).

Gradients and norms are those of each example, over what of it is no padding. Noise belongs to the place of an example
in the run. The passes of fgm and freelb have the same dropout, as Zhu et al. ask for; r3f's second pass draws its own,
as its authors' does.
"""

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.utils.checkpoint import get_device_states, set_device_states
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from hf_interp.losses.anchor import alpha_of_steps, check_head, check_logits_are_kept, check_strategy
from hf_interp.losses.kl_divergence import DIRECTIONS, kl_divergence
from hf_interp.losses.per_example import is_ctc
from hf_interp.losses.ref_model import unwrap_peft
from hf_interp.mixture.schedules import AlphaSchedule

logger = logging.getLogger(__name__)

EPSILONS = {"fgm": 0.2, "freelb": 0.2, "r3f": 1e-5}
"""Sizes of a perturbation where none is given: a norm, and for r3f the largest number."""

NOISE = 0x5EED
"""Keeps the seeds of noise apart from those of what collators draw for the same example."""

Pass = Callable[[], tuple[torch.Tensor, Any]]
"""Computes the loss of a micro-batch, and the model's outputs."""

Maker = Callable[[int, torch.Tensor], torch.Tensor]
"""Makes what is added to the inputs of a call: from the number of the call, and the inputs."""


class Rows(NamedTuple):
    """The examples that a model embeds in one call."""

    inputs: Mapping[str, Any]
    numbers: Sequence[int]  # of their places in the run


class Perturbation:
    """What is added to the inputs of a model.

    Args:
        model: as a trainer has it, with its adapters.
        rows: what the model embeds in one pass, call by call; what it embeds beyond that, as a decoder does, is left
            alone, and so is what runs without gradients, as M₀ does.
    """

    def __init__(self, model: nn.Module, rows: Sequence[Rows]) -> None:
        self.model, self.rows = model, rows
        self.added: list[torch.Tensor] = []  # in the last pass, call by call

    @contextmanager
    def applied(self, make: Maker) -> Iterator[None]:
        """Add `make(call, inputs)` while the model runs; it is a leaf that gradients can be asked for."""
        self.added = []

        def add(value: torch.Tensor) -> torch.Tensor:
            call = len(self.added)
            if not torch.is_grad_enabled() or call == len(self.rows):
                return value
            if len(value) != len(self.rows[call].numbers):
                raise ValueError("Adversarial training needs one row for each example. Set `padding_free=False`.")
            self.added.append(make(call, value.detach()).detach().requires_grad_())
            return value + self.added[-1].to(value.dtype)

        handle = _hook(self.model, add)
        try:
            yield
        finally:
            handle.remove()
        if len(self.added) < len(self.rows):
            name = type(unwrap_peft(self.model)).__name__
            raise ValueError(f"{name} does not run its input embeddings, which `adversarial` perturbs. Leave it out.")

    def mask(self, call: int, value: torch.Tensor) -> torch.Tensor:
        """Return 1 for each number of a call's inputs that is no padding, 0 for others; in the shape of the inputs."""
        found, inputs = torch.ones_like(value, dtype=torch.bool), self.rows[call].inputs
        given = inputs.get("attention_mask")
        if given is None and (places := inputs.get("position_ids")) is not None and places.dim() == 2:
            given = places.flip(1).cumsum(1).flip(1) > 0  # packed rows end with places of 0, which are padding
        if given is None or given.dim() != 2 or value.dim() < 2:
            return found
        if given.shape[1] == value.shape[1]:
            return found & given.bool().reshape(*given.shape, *[1] * (value.dim() - 2))
        is_last = given.shape[1] == value.shape[-1]  # features of sound over time
        return found & given.bool().reshape(len(given), *[1] * (value.dim() - 2), -1) if is_last else found

    def noise(self, call: int, value: torch.Tensor, seed: int) -> torch.Tensor:
        """Return numbers from U(−1, 1) for what is no padding, the same for an example in any batch."""
        mask = self.mask(call, value).cpu()
        found = torch.zeros(mask.shape)
        for row, number in enumerate(self.rows[call].numbers):
            generator = torch.Generator().manual_seed(((seed ^ NOISE) * 1_000_003 + number) % (1 << 63))
            found[row][mask[row]] = torch.rand(int(mask[row].sum()), generator=generator) * 2 - 1
        return found.to(value.device)

    def direction(self, call: int, gradient: torch.Tensor) -> torch.Tensor:
        """Return the gradient of each example divided by its norm; 0 where there is none."""
        own = gradient.float() * self.mask(call, gradient)
        return own / _norms(own).clamp(min=torch.finfo(own.dtype).tiny)


class Adversary(TrainerCallback):
    """Makes the loss of a micro-batch an adversarial one, and tells what that was.

    Args:
        trainer: gives the settings, an `InterpolationConfig`, and the model.
        alpha_schedule: α over progress where neither the settings have one for this nor a mixture has one.
    """

    def __init__(self, trainer: Trainer, alpha_schedule: AlphaSchedule | None = None) -> None:
        self.trainer, self.args = trainer, trainer.args
        self.epsilon = self.args.adversarial_epsilon or EPSILONS[self.args.adversarial]
        self._given_schedule = alpha_schedule
        self._alpha_of: Callable[[int], float] = lambda step: 1.0  # until training begins
        self.begin(())

    def weight(self, step: int) -> float:
        """Return (1 − α)·strength at a step, or α·strength."""
        alpha = self._alpha_of(step)
        share = alpha if self.args.adversarial_follows == "alpha" else 1 - alpha
        return float(share * self.args.adversarial_strength)

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Settle α, and warn where it leaves no weight."""
        own = self.args.build_adversarial_schedule(state.max_steps)
        self._alpha_of = alpha_of_steps(self.args, state, kwargs["train_dataloader"], own, self._given_schedule)
        some = [self.weight(step) for step in range(0, state.max_steps, 1 + state.max_steps // 100)]
        if not any(some) and state.is_world_process_zero:
            logger.warning(
                'adversarial="%s" has no weight in this run, where %s is 0. To give it all of its strength, set '
                "`adversarial_alpha_schedule` to {type: constant, value: %d}.",
                *(self.args.adversarial, "α" if self.args.adversarial_follows == "alpha" else "1 − α"),
                self.args.adversarial_follows == "alpha",
            )

    def numbers(self, micro_batch: int, count: int) -> list[int]:
        """Return the places in the run of the examples of a micro-batch of the step in progress."""
        args, step = self.args, self.trainer.state.global_step
        batch = (step * args.gradient_accumulation_steps + micro_batch) * args.world_size + args.process_index
        size = self.trainer._train_batch_size or args.train_batch_size
        return list(range(batch * size, batch * size + count))

    def ascend(
        self, inputs: Perturbation, first: Pass, again: Pass, weight: float, scale: float
    ) -> tuple[torch.Tensor, Any, torch.Tensor]:
        """Return the loss of fgm or freelb, the model's outputs, and A.

        The gradients of each pass are computed at once, and carried to where the loss is backpropagated: so there is
        never more than one pass in memory, and each costs what a pass of training does.

        Args:
            inputs: what is to be perturbed.
            first: runs the model on the micro-batch.
            again: does so, too, and notes nothing.
            weight: w.
            scale: by what losses are multiplied so that no gradient in 16 bits vanishes.
        """
        args, random, carried = self.args, _RandomState(self.args.device), _Carried(self.trainer.model, scale)
        epsilon, steps = self.epsilon, args.adversarial_steps if args.adversarial == "freelb" else 1
        rate = args.adversarial_step_size or epsilon / steps
        if args.adversarial == "fgm":
            with inputs.applied(lambda _, value: torch.zeros_like(value)):
                loss, outputs = first()
            make = _stepping(inputs, carried.add(loss, 1.0, inputs.added), rate, epsilon)
        else:
            loss, outputs = first()
            carried.add(loss, 1.0, ())
            make = self._start(inputs)
        total = torch.zeros_like(carried.value)
        for _ in range(steps):
            random.put_back()
            with inputs.applied(make):
                perturbed = again()[0]
            total += perturbed.detach() / steps
            make = _stepping(inputs, carried.add(perturbed, weight / steps, inputs.added), rate, epsilon)
        return carried.loss(), outputs, total

    def compare(
        self,
        inputs: Perturbation,
        first: Pass,
        predict: Callable[[], Any],
        weight: float,
        divergence: Callable[[Any, Any], torch.Tensor],
    ) -> tuple[torch.Tensor, Any, torch.Tensor]:
        """Return the loss of r3f, the model's outputs, and A.

        `predict` gives the outputs of a pass, `divergence` is that of two of them, at the scale of the loss.
        """
        epsilon, seed = self.epsilon, self.args.seed
        loss, outputs = first()
        with inputs.applied(lambda call, value: epsilon * inputs.noise(call, value, seed)):
            found = divergence(outputs, predict())
        return loss + weight * found.to(loss.dtype), outputs, found.detach()

    def _start(self, inputs: Perturbation) -> Maker:
        def make(call: int, value: torch.Tensor) -> torch.Tensor:
            count = inputs.mask(call, value).flatten(1).sum(1).clamp(min=1).reshape(-1, *[1] * (value.dim() - 1))
            return inputs.noise(call, value, self.args.seed) * self.epsilon / count.sqrt()

        return make

    # What is logged and saved.

    def note(self, value: torch.Tensor) -> None:
        """Note A of a micro-batch, as a mean."""
        self.sums += torch.stack([value.to(self.sums), torch.ones_like(self.sums[0])])

    def take_log(self, step: int, reduce: Callable[[torch.Tensor], torch.Tensor]) -> dict[str, float]:
        """Return what to log after a step: the weight, and the mean of A since the last log if there was any."""
        total, count = reduce(self.sums).tolist()
        self.sums.zero_()
        return {"adversarial_weight": self.weight(step)} | ({"adversarial_loss": total / count} if count else {})

    def state_dict(self) -> dict[str, Any]:
        """Return what is summed up."""
        return {"sums": self.sums.tolist()}

    def begin(self, rank_states: Iterable[Mapping[str, Any]]) -> None:
        """Begin anew, with the sums that processes have left in a checkpoint."""
        kind = torch.float32 if self.args.device.type == "mps" else torch.float64
        self.sums = torch.zeros(2, dtype=kind, device=self.args.device)  # of A, and how many
        for state in (each["adversary"] for each in rank_states if "adversary" in each):
            self.sums += torch.tensor(state["sums"], dtype=kind, device=self.args.device)


def symmetric_kl(logits: torch.Tensor, others: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    """Return KL(p‖q) + KL(q‖p) of some rows of two models' logits, with gradients to both.

    >>> symmetric_kl(torch.tensor([[0.0, 0.0]]), torch.tensor([[1.0, 0.0]]), torch.tensor([0]))
    tensor([0.2311])
    """
    there, back = (
        torch.stack([kl_divergence(one, other, rows=rows, direction=direction) for direction in DIRECTIONS]).sum(0)
        for one, other in ((logits, others), (others, logits))
    )
    return there + (back - back.detach())  # each has a gradient to one of the two


def check_adversary(trainer: Trainer, *, computes_loss: bool) -> None:
    """Refuse what adversarial training cannot do, before anything is computed."""
    args, model = trainer.args, unwrap_peft(trainer.model)
    what = f'adversarial="{args.adversarial}"'
    check_strategy(trainer, what, with_deepspeed=False)
    if computes_loss:
        raise ValueError(f"{what} takes the loss from the model, but {type(trainer).__name__} computes its own.")
    if args.torch_compile:
        raise ValueError(f"{what} changes inputs on their way, which a compiled model does not see. Leave one out.")
    if args.gradient_checkpointing and (args.gradient_checkpointing_kwargs or {}).get("use_reentrant"):
        raise ValueError(f"{what} does not go with checkpointing that is reentrant. Set `use_reentrant: false`.")
    if model.main_input_name == "input_ids" and _embeddings(model) is None:
        raise ValueError(f"{what} perturbs input embeddings, which {type(model).__name__} does not have. Leave it out.")
    if args.adversarial == "r3f" and is_ctc(model):
        raise ValueError(
            f'{what} needs one prediction for each label, which CTC does not make. Use `adversarial="fgm"`.'
        )
    if args.adversarial == "r3f":
        check_head(trainer, what, 'Use `adversarial="fgm"`')
        check_logits_are_kept(args)


def _embeddings(model: Any) -> nn.Module | None:
    """Return the module that embeds the tokens of a model; of an encoder-decoder, those that the encoder reads."""
    if getattr(model.config, "is_encoder_decoder", False):
        model = model.get_encoder()
    try:
        found: nn.Module | None = model.get_input_embeddings()
    except (NotImplementedError, AttributeError):
        return None
    return found


def _hook(model: nn.Module, add: Callable[[torch.Tensor], torch.Tensor]) -> Any:
    """Let `add` change the inputs of a model until the handle that is returned is removed."""
    bare = unwrap_peft(model)
    name = bare.main_input_name
    if name == "input_ids":
        embeddings = _embeddings(bare)
        assert embeddings is not None
        return embeddings.register_forward_hook(lambda _module, _args, value: add(value))
    first = next((part.conv_layers[0] for part in bare.modules() if hasattr(part, "conv_layers")), None)
    if name == "input_values" and first is not None:  # wav2vec2 asks for gradients of the sound, a leaf until then
        return first.register_forward_pre_hook(lambda _module, args: (add(args[0]), *args[1:]))
    return model.register_forward_pre_hook(
        lambda _module, args, kwargs: (args, {**kwargs, name: add(kwargs[name])} if name in kwargs else kwargs),
        with_kwargs=True,
    )


def _norms(values: torch.Tensor) -> torch.Tensor:
    """Return the norm of each example, in a shape that its numbers can be divided by."""
    return values.flatten(1).norm(dim=1).reshape(-1, *[1] * (values.dim() - 1))


def _stepping(inputs: Perturbation, gradients: Sequence[torch.Tensor], rate: float, epsilon: float) -> Maker:
    """Return what makes a perturbation that is a step further up than the last, within a ball."""
    found = []
    for call, (delta, gradient) in enumerate(zip(inputs.added, gradients, strict=True)):
        moved = delta.detach().float() + rate * inputs.direction(call, gradient)
        found.append(moved * (epsilon / _norms(moved).clamp(min=epsilon)))
    return lambda call, value: found[call]


class _RandomState:
    """The generators that dropout draws from, as they are now."""

    def __init__(self, device: torch.device) -> None:
        self.device, self.cpu = device, torch.get_rng_state()
        self.others = get_device_states(torch.empty(0, device=device))

    def put_back(self) -> None:
        """Let the generators draw the same once more."""
        torch.set_rng_state(self.cpu)
        set_device_states(*self.others, device_type=self.device.type)


class _Carried:
    """A sum of losses whose gradients have been computed."""

    def __init__(self, model: nn.Module, scale: float) -> None:
        self.parameters = [each for each in model.parameters() if each.requires_grad]
        self.gradients: list[torch.Tensor | None] = [None] * len(self.parameters)
        self.scale, self.value = scale, torch.zeros((), device=self.parameters[0].device)

    def add(self, loss: torch.Tensor, weight: float, inputs: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """Add a loss, whose graph is freed, and return its gradients with respect to the inputs, times the scale."""
        found = torch.autograd.grad(loss * self.scale, [*inputs, *self.parameters], allow_unused=True)
        for index, gradient in enumerate(found[len(inputs) :]):
            if gradient is not None:
                own, gradient = self.gradients[index], gradient * (weight / self.scale)
                self.gradients[index] = gradient if own is None else own.add_(gradient)
        self.value = self.value + weight * loss.detach()
        return [
            torch.zeros_like(each) if gradient is None else gradient
            for each, gradient in zip(inputs, found[: len(inputs)], strict=True)
        ]

    def loss(self) -> torch.Tensor:
        """Return the sum, from which the gradients flow on."""
        known = [pair for pair in zip(self.gradients, self.parameters, strict=True) if pair[0] is not None]
        gradients, parameters = zip(*known, strict=True)
        found: torch.Tensor = _Known.apply(self.value, gradients, *parameters)  # type: ignore[no-untyped-call]
        return found


class _Known(torch.autograd.Function):
    """A number whose gradients are given."""

    @staticmethod
    def forward(ctx: Any, value: torch.Tensor, gradients: Sequence[torch.Tensor], *parameters: nn.Parameter) -> Any:
        ctx.gradients = gradients
        return value.clone()

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> Any:
        found, ctx.gradients = [each * grads[0].to(each.dtype) for each in ctx.gradients], None
        return None, None, *found
