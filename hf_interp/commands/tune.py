"""Search over the settings of α on validation sets, with optuna: every trial is a run of a recipe."""

import json
import math
import os
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from hf_interp.commands.compare import CountCells, quiet_bar, quiet_trainer, train_quietly
from hf_interp.commands.search_space import ALPHA_FIELDS, Space, make_space
from hf_interp.reporting.plots import plot_tuning
from hf_interp.reporting.results import evaluations, forgetting, less_is_better, main_metric, save_results
from hf_interp.selection.choice import AlphaSearch, check_no_limits, choose_alpha
from hf_interp.tasks.build import RecipeData, check_recipe, load_data, plan_data
from hf_interp.tasks.parsing import parse_recipe
from hf_interp.tasks.recipe import Recipe, with_alpha
from hf_interp.utils.console import format_table
from hf_interp.utils.environment import describe_machine, installed_versions
from hf_interp.utils.errors import import_extra
from hf_interp.utils.files import new_file
from hf_interp.utils.redaction import without_tokens
from hf_interp.utils.run_folder import RESULTS_NAME

DATABASE_NAME = "tuning.db"
TUNING_NAME = "tuning.json"
PLOT_NAME = "tuning.png"
TUNED_NAME = "tuned.yaml"
"""The recipe with the best settings."""
BEST_NAME = "best"
"""The folder of the best trial's model."""

TRIAL = {"eval_strategy": "no", "load_best_model_at_end": False}
"""Fields that every trial sets over the recipe's: it is judged by the model at its end."""
MOST_REFUSED = 50
"""Trials in a row whose settings cannot be planned, after which the search gives up."""


@dataclass(frozen=True, kw_only=True)
class Goal:
    """The goal of a search: one number from the metrics on the validation sets, of which more is better.

    The objectives are those of `choose_alpha`, with M₀ at α = 0 and the trained model at α = 1. With d and g the
    metrics of the two sides after a trial and d₀ and g₀ those of M₀, turned so that more is better, a trial that breaks
    the constraint g ≥ g₀ − `max_forgetting` of "constrained" is not feasible: it ranks behind all that are, and its
    number, min(d, d₀) − (g₀ − `max_forgetting` − g), tells the search how far off it is. A trial whose metrics are not
    finite has the objective minus infinity and is not feasible.

    Args:
        search: objective, `max_forgetting`, `domain_weight` and the names of the sets.
        metric: the metric that is compared.
        base: M₀'s metrics by set.
    """

    search: AlphaSearch
    metric: str
    base: Mapping[str, Mapping[str, float]]

    def __post_init__(self) -> None:
        for name, found in self.base.items():
            if self.metric not in found:
                raise ValueError(
                    f"The metric {self.metric!r} is not among those of the set {name!r}: {', '.join(found)}. Choose "
                    "one of them as `alpha_search.metric`."
                )
            if not math.isfinite(found[self.metric]):
                raise ValueError(f"M₀'s {self.metric} on the set {name!r} must be finite, got {found[self.metric]}.")
        self.score(self.base)

    def score(self, metrics: Mapping[str, Mapping[str, float]]) -> tuple[float, bool]:
        """Return the objective after a trial, of which more is better, and whether it keeps the constraint.

        >>> base = {"domain": {"accuracy": 0.5}, "general": {"accuracy": 0.75}}
        >>> goal = Goal(search=AlphaSearch(objective="constrained", max_forgetting=0.0), metric="accuracy", base=base)
        >>> goal.score({"domain": {"accuracy": 0.8}, "general": {"accuracy": 0.8}})
        (0.8, True)
        >>> goal.score({"domain": {"accuracy": 0.8}, "general": {"accuracy": 0.5}})
        (0.25, False)
        """
        search, more = self.search, not less_is_better(self.metric, self.search.greater_is_better)
        # without a general set the objective is the domain's alone
        domain, general = (
            np.array([found.get(name, {}).get(self.metric, 0.0) for found in (self.base, metrics)], dtype=np.float64)
            for name in (search.domain, search.general)
        )
        if not np.isfinite([domain, general]).all():
            return -math.inf, False
        objective = choose_alpha(
            [0.0, 1.0],
            domain,
            general,
            replace(search, one_standard_error=False, prefer_trained=False),
            greater_is_better=more,
            num_resamples=0,
        ).objective_values[1]
        if objective > -math.inf:
            return objective, True
        (d_base, d), (g_base, g) = (values if more else -values for values in (domain, general))
        return float(min(d, d_base) - (g_base - search.max_forgetting - g)), False


@dataclass(kw_only=True)
class Tuning:
    """The outcome of a search.

    Args:
        trials: the complete trials in the order in which they ran: `trial` (its number), `own` (whether its settings
            are the recipe's own), `settings`, `objective` (`None` where it is not finite), `feasible`, `domain`,
            `general` and `forgetting` of the metric (`None` without a general set), `metrics` by validation set, and
            `seconds`.
        base_metrics: M₀'s metrics by validation set.
        settings: what was asked: the recipe, the space, the objective with its metric, the seed.
    """

    trials: list[dict[str, Any]]
    base_metrics: dict[str, dict[str, float]]
    settings: dict[str, Any]
    versions: dict[str, str] = field(default_factory=installed_versions)
    machine: dict[str, Any] = field(default_factory=describe_machine)

    def ranked(self) -> list[dict[str, Any]]:
        """Sort the trials, best first: those that keep the constraint, then by objective, of equals the earlier one."""

        def key(row: Mapping[str, Any]) -> tuple[bool, float]:
            return not row["feasible"], math.inf if row["objective"] is None else -row["objective"]

        return sorted(self.trials, key=key)


def tune_recipe(
    recipe: Mapping[str, Any],
    *,
    trials: int,
    space: Mapping[str, Any] | None = None,
    tune_learning_rate: bool = False,
    falling: bool = False,
    storage: str | None = None,
    study_name: str = "tuning",
    keep: bool = False,
) -> Tuning:
    """Search for the settings of α that are best for a recipe, on its validation sets.

    Every trial is a run of the recipe from the same M₀ with the same seed and as many steps, but other settings of α;
    the first has the recipe's own. What is best says the recipe's `alpha_search`, whose `objective`, `metric`,
    `max_forgetting`, `domain_weight`, `domain` and `general` mean for the trained models here what they mean for M_α
    there (see `Goal`). Without it the objective is "constrained" if there is a general set, and else "domain".

    The study, `tuning.json`, `tuning.png` and the recipe with the best settings, `tuned.yaml`, go to `output_dir`,
    without tokens; no model does. Called again, the search goes on until there are so many trials. A trial that was
    killed does not count, and the search tries again what it would have tried; so it does the same as one that was
    never interrupted. Only one process at a time may work on a study.

    Args:
        recipe: a recipe with a set `domain` and, but for the objective "domain", a set `general`: among its
            `validation_corpora`, or among its `eval_corpora` if it has none of the former.
        trials: complete trials to end with, those of earlier calls among them.
        space: restrictions by field (see `hf_interp.commands.search_space.make_space`).
        tune_learning_rate: search the learning rate too.
        falling: allow α to start above its end.
        storage: URL of a database, as optuna takes it; by default `tuning.db` in `output_dir`.
        study_name: name of the study in it.
        keep: keep the best trial's model in the folder `best` of `output_dir`, where this call has trained it.

    Returns:
        all complete trials.

    Raises:
        ImportError: if optuna is not installed.
        ValueError, OSError: for bad input, before anything is trained; for a study of another recipe or space; or if
            the space holds no settings that can be planned.
    """
    import_extra("optuna", "A search over the settings of α needs optuna", "tune")
    if (started := int(os.environ.get("WORLD_SIZE", "1"))) > 1:
        raise ValueError(
            f"A search over the settings of α runs in one process, but a launcher has started {started}. Start "
            "`hf-interp tune` without it; the tuned recipe may be trained with it."
        )
    if isinstance(trials, bool) or not isinstance(trials, int) or trials < 1:
        raise ValueError(f"`trials` must be a whole number of at least 1, got {trials!r}.")
    recipe = without_tokens(recipe)
    parsed, args = parse_recipe(recipe)
    task = check_recipe(parsed, args)
    search = choose_search(parsed)
    rate = args.learning_rate if tune_learning_rate else None
    restricted = make_space(space, learning_rate=rate, falling=falling)
    data = load_data(parsed, task)
    sets = data.validation_sets or data.eval_sets
    data = replace(data, eval_sets={name: sets[name] for name in (search.domain, search.general) if name in sets})
    steps = plan_data(data, args).max_steps  # now, so that bad input leaves nothing behind
    if args.max_steps < 0:  # epochs, of which other α make other numbers of steps: trials are to have as many
        recipe = with_alpha(recipe, {"max_steps": steps})
    folder = Path(args.output_dir or ".")
    with _open_study(storage, folder, study_name) as study, tempfile.TemporaryDirectory() as scratch:
        _settle(study, {"recipe": {**recipe, "output_dir": None}, "space": asdict(restricted)})
        run = {**recipe, **TRIAL, "output_dir": scratch}
        rows = [trial.user_attrs["row"] for trial in _trials(study, "COMPLETE")]
        with quiet_bar(max(trials - len(rows), 0) * steps, shown=not args.disable_tqdm) as bar:
            if "base_metrics" not in study.user_attrs:
                study.set_user_attr("base_metrics", evaluations([quiet_trainer(run, data, bar).evaluate()]))
            base = study.user_attrs["base_metrics"]
            goal = Goal(search=search, metric=search.metric or main_metric(base) or "loss", base=base)
            asked = {
                "recipe": recipe,
                "space": asdict(restricted),
                "objective": search.objective,
                "max_forgetting": search.max_forgetting,
                "domain_weight": search.domain_weight,
                "metric": goal.metric,
                "sets": [search.domain, search.general],
                "seed": args.seed,
            }
            tuning = Tuning(trials=rows, base_metrics=base, settings=asked)
            own = {name: getattr(args, name) for name in ALPHA_FIELDS}
            own["alpha_schedule_kwargs"] = dict(args.alpha_schedule_kwargs or {})  # type: ignore[arg-type]
            if restricted.learning_rate is not None:
                own["learning_rate"] = args.learning_rate
            draws = _Draws(study, restricted, own, args.seed)
            _write(tuning, folder)
            tell = CountCells(bar, trials, len(rows))
            while len(rows) < trials:
                trial, settings = draws.next(run, data)
                bar.set_description(f"trial {trial.number}")
                began, trainer = time.monotonic(), None
                try:
                    trainer = train_quietly(with_alpha(run, settings), data, bar, evaluate_base=False)
                    metrics = trainer.results().final_metrics
                except FloatingPointError:  # a run that diverges is the worst
                    metrics = {name: {goal.metric: math.nan} for name in base}
                row = _row(trial, settings, goal, metrics)
                row["seconds"] = round(time.monotonic() - began, 3)
                trial.set_user_attr("row", row)
                study.tell(trial, goal.score(metrics)[0])
                rows.append(row)
                _write(tuning, folder)
                is_best = tuning.ranked()[0] is row
                objective = "no number" if row["objective"] is None else f"{row['objective']:.4f}"
                tell.done(f"{describe(settings)}: {search.objective} {objective}{', the best so far' * is_best}")
                if keep and is_best and trainer is not None:
                    trainer.save_model(str(folder / BEST_NAME))
                    save_results(trainer.results(), folder / BEST_NAME / RESULTS_NAME)
    base_of_sides = [base.get(name, {}).get(goal.metric) for name in (search.domain, search.general)]
    plot_tuning(rows, folder / PLOT_NAME, best=tuning.ranked()[0], base=base_of_sides, metric=goal.metric)
    return tuning


def choose_search(recipe: Recipe) -> AlphaSearch:
    """Return the goal that a recipe sets: its `alpha_search`, or what suits its sets."""
    names = list(getattr(recipe, recipe.search_group))
    search = recipe.alpha_search or AlphaSearch(objective="constrained" if "general" in names else "domain")
    if search.domain not in names:
        raise ValueError(
            f"A search over the settings of α needs the set {search.domain!r}, but `{recipe.search_group}` has "
            f"{names}. Name it there."
        )
    check_no_limits(search, "a search over the settings of α")
    if search.objective == "knee":
        raise ValueError(
            "`alpha_search.objective` must not be 'knee' here: a knee belongs to the curve of one run. Take "
            "'constrained', 'mean', 'harmonic' or 'domain'."
        )
    return search


def tuned_recipe(recipe: Mapping[str, Any], trial: Mapping[str, Any]) -> dict[str, Any]:
    """Return the recipe with a trial's settings; keys stay in order, the recipe's own settings as they are written.

    >>> trial = {"own": False, "settings": {"alpha_end": 0.5, "alpha_schedule_kwargs": {}}}
    >>> tuned_recipe({"alpha_end": 1.0, "alpha_schedule_kwargs": {"rate": 3.0}, "seed": 1}, trial)
    {'alpha_end': 0.5, 'seed': 1}
    """
    if trial["own"]:
        return dict(recipe)
    settings = dict(trial["settings"])
    if settings.get("alpha_schedule_type") == "constant":
        alpha = settings["alpha_end"]
        settings = {"alpha": alpha, **{name: settings[name] for name in settings if not name.startswith("alpha_")}}
    elif not settings["alpha_schedule_kwargs"]:
        recipe = {name: value for name, value in recipe.items() if name != "alpha_schedule_kwargs"}
        del settings["alpha_schedule_kwargs"]
    return with_alpha(recipe, settings)


def format_tuning(tuning: Tuning, top: int = 5) -> str:
    """Format the best trials, the recipe's own settings and M₀: settings, objective, and the metric on both sides."""

    def cells(values: Iterable[float | None]) -> list[str]:
        return ["" if value is None else f"{value:.4f}" for value in values]

    metric, ranked = tuning.settings["metric"], tuning.ranked()
    rows = []
    for place, row in enumerate(ranked, 1):
        if place <= top or row["own"]:
            own = ", the recipe's" if row["own"] else ""
            numbers = cells(row[name] for name in ("objective", "domain", "general", "forgetting"))
            numbers[0] += "" if row["feasible"] else " (not feasible)"
            rows.append([describe(row["settings"]), f"{row['trial']}{own}", str(place), *numbers])
    base = cells(tuning.base_metrics.get(name, {}).get(metric) for name in tuning.settings["sets"])
    rows.append(["M₀", "", "", "", *base, ""])
    objective = tuning.settings["objective"]
    header = ["settings of α", "trial", "rank", objective, f"domain {metric}", f"general {metric}", "forgetting"]
    return format_table(header, rows)


def advise(tuning: Tuning, folder: str | os.PathLike[str]) -> str:
    """Say what came out, where it is, and what to do before it is believed."""
    best, settings, count = tuning.ranked()[0], tuning.settings, len(tuning.trials)
    what = f"Trial {best['trial']} is the best of {count}"
    if best["own"]:
        what = f"None of {count} trials is better than the recipe's own settings"
    if not best["feasible"]:
        what += (
            f"; but none loses at most {settings['max_forgetting']:g} of M₀'s general {settings['metric']} "
            "(`alpha_search.max_forgetting`)"
        )
    seeds = " ".join(str(settings["seed"] + more) for more in (1, 2, 3))
    return f"""{what}.
{TUNED_NAME} (the recipe with the best settings), {TUNING_NAME}, {PLOT_NAME} and the study are in {folder}.

Every trial has run once, with seed {settings["seed"]}, and the best of many looks better than it is. Before you
believe it, see other seeds and the test sets:
  hf-interp compare {os.path.join(folder, TUNED_NAME)} --seeds {seeds}"""


def describe(settings: Mapping[str, Any]) -> str:
    """Return settings in a few words.

    >>> describe(dict(alpha_schedule_type="cosine", alpha_start=0.1, alpha_end=0.9, alpha_initial_steps=0.25,
    ...     alpha_target_steps=0.0))
    'cosine 0.1 → 0.9, phases 0.25 and 0'
    """
    kind, start, end, initial, target = (settings[name] for name in ALPHA_FIELDS)
    kwargs = settings.get("alpha_schedule_kwargs") or {}
    parts = [f"constant {end:g}" if kind == "constant" else f"{kind} {start:g} → {end:g}"]
    if kind in ("steps", "piecewise"):
        parts = [kind]
    elif kwargs and kind != "constant":
        parts += [f"{name} {value}" for name, value in kwargs.items()]
    if initial or target:
        parts.append(f"phases {initial:g} and {target:g}")
    if "learning_rate" in settings:
        parts.append(f"learning rate {settings['learning_rate']:g}")
    return ", ".join(parts)


@dataclass
class _Draws:
    """The settings that trials draw: first the recipe's own, then what a sampler suggests."""

    study: Any
    space: Space
    own: Mapping[str, Any]
    seed: int

    def __post_init__(self) -> None:
        own = dict(self.own)
        self.own_parameters = self.space.parameters(own)  # `None` if they lie outside the space
        if not any(trial.user_attrs.get("own") for trial in _trials(self.study, "COMPLETE", "WAITING")):
            self.study.enqueue_trial(self.own_parameters or {}, user_attrs={"own": True})

    def next(self, run: Mapping[str, Any], data: RecipeData) -> tuple[Any, dict[str, Any]]:
        """Return a new trial with settings that can be planned.

        Raises:
            ValueError: if none is found in `MOST_REFUSED` trials.
        """
        from optuna.samplers import TPESampler
        from optuna.trial import TrialState

        for _ in range(MOST_REFUSED):
            # seeded by how many trials have ended: a search that goes on draws as if it never stopped
            seeds = np.random.SeedSequence([self.seed, len(_trials(self.study, "COMPLETE", "PRUNED"))])
            self.study.sampler = TPESampler(seed=int(seeds.generate_state(1)[0]))
            trial = self.study.ask()
            try:
                settings = self._draw(trial)
                plan_data(data, parse_recipe(with_alpha(run, settings))[1])
                return trial, settings
            except ValueError as error:
                refusal = error
                trial.set_user_attr("refused", str(error))
                self.study.tell(trial, state=TrialState.PRUNED)
        raise ValueError(
            f"The settings of {MOST_REFUSED} trials in a row could not be planned, those of the last because: "
            f"{refusal} Narrow `space` (--space) to what can be."
        ) from refusal

    def _draw(self, trial: Any) -> dict[str, Any]:
        if trial.user_attrs.get("own"):
            if self.own_parameters is not None:
                self.space.suggest(trial)  # the study is to know what they are
            return dict(self.own)
        settings = self.space.suggest(trial)
        kind = settings["alpha_schedule_type"]
        # other schedules do not take these, and a constant's value is its α
        keeps = kind == self.own["alpha_schedule_type"] and kind != "constant"
        return {**settings, "alpha_schedule_kwargs": self.own["alpha_schedule_kwargs"] if keeps else {}}


def _row(trial: Any, settings: Mapping[str, Any], goal: Goal, metrics: Mapping[str, Any]) -> dict[str, Any]:
    """Return what is kept of a trial."""
    (objective, feasible), names = goal.score(metrics), (goal.search.domain, goal.search.general)
    domain, general = (metrics.get(name, {}) for name in names)
    return {
        "trial": trial.number,
        "own": bool(trial.user_attrs.get("own")),
        "settings": settings,
        "objective": objective if math.isfinite(objective) else None,
        "feasible": feasible,
        "domain": domain.get(goal.metric),
        "general": general.get(goal.metric),
        "forgetting": forgetting(goal.base.get(names[1], {}), general).get(goal.metric),
        "metrics": metrics,
    }


def _write(tuning: Tuning, folder: Path) -> None:
    """Write what has been found so far, and the recipe with the best of it."""
    if tuning.trials:
        save_results(tuning, folder / TUNING_NAME)
        with new_file(folder / TUNED_NAME) as file:
            tuned = tuned_recipe(tuning.settings["recipe"], tuning.ranked()[0])
            yaml.safe_dump(tuned, file, sort_keys=False, allow_unicode=True)


def _trials(study: Any, *states: str) -> list[Any]:
    return [trial for trial in study.get_trials(deepcopy=False) if trial.state.name in states]


def _settle(study: Any, asked: Mapping[str, Any]) -> None:
    """Note in a new study what it is about, and check that an old one is about the same; what was killed has failed."""
    from optuna.trial import TrialState

    now, known = json.loads(json.dumps(asked, default=str)), study.user_attrs.get("asked")
    if known is None:
        if study.get_trials(deepcopy=False):
            raise ValueError(
                f"The study {study.study_name!r} was not made by hf-interp tune. Take another `study_name` "
                "(--study_name) or `storage` (--storage)."
            )
        study.set_user_attr("asked", now)
    elif changes := list(_changes(known, now)):
        raise ValueError(
            f"The study {study.study_name!r} is about something else: {'; '.join(changes)}. Its trials cannot be "
            "compared with new ones: undo the changes, or begin another study with another `output_dir`, `study_name` "
            "(--study_name) or `storage` (--storage)."
        )
    for trial in _trials(study, "RUNNING"):
        study.tell(trial.number, state=TrialState.FAIL)


def _changes(before: Any, after: Any, place: str = "") -> Iterator[str]:
    """Yield what differs between two trees of plain values, such as "recipe.seed was 0 and is 1"."""
    if isinstance(before, dict) and isinstance(after, dict):
        for name in dict.fromkeys([*before, *after]):
            yield from _changes(before.get(name), after.get(name), f"{place}.{name}" if place else name)
    elif before != after:
        yield f"{place} was {before!r} and is {after!r}"


@contextmanager
def _open_study(storage: str | None, folder: Path, name: str) -> Iterator[Any]:
    """Return a study, new or as it was left; optuna says nothing but errors meanwhile."""
    import optuna
    from sqlalchemy.exc import SQLAlchemyError

    verbosity = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    opened = None
    try:
        folder.mkdir(parents=True, exist_ok=True)
        try:
            opened = optuna.storages.RDBStorage(storage or f"sqlite:///{folder.resolve() / DATABASE_NAME}")
            study = optuna.create_study(storage=opened, study_name=name, load_if_exists=True, direction="maximize")
        except (SQLAlchemyError, optuna.exceptions.OptunaError) as error:  # without its text: a URL may hold a password
            place = "`storage` (--storage)" if storage else f"{DATABASE_NAME} in {str(folder)!r}"
            raise ValueError(f"No study can be opened in {place}: {type(error).__name__}. Check it.") from error
        yield study
    finally:
        if opened is not None:
            opened.remove_session()
            opened.engine.dispose()
        optuna.logging.set_verbosity(verbosity)
