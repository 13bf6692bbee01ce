"""The schema of the configuration, and the checks that OmegaConf cannot make.

A misspelt top-level key fails against `Config`; a misspelt or mistyped key of a component fails against the signature
of what its `_target_` names; both before anything is loaded.
"""

import difflib
import enum
import inspect
import math
import re
from dataclasses import dataclass, field, fields
from typing import Any

from beartype import BeartypeConf
from beartype.door import is_bearable
from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig
from hydra.utils import get_object
from omegaconf import MISSING, DictConfig, OmegaConf, open_dict
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException

from src.errors import UserError, first_line
from src.files import expanded
from src.metrics.glossary import GLOSSARY, PARTS
from src.overrides import CONF
from src.targets import check_base, target_of

POSITIVE = ("batch_size", "sampling_batch")  # options of any component, counted from 1
ABOVE_ZERO = ("clip_range", "value_clip_range", "advantage_clip")  # options of any component
CUTS_SHORT = ("max_steps", "min_steps", "min_epochs", "limit_train_batches", "overfit_batches")
GROUPS = (
    *("policy", "algorithm", "critic", "reset", "regulariser", "prompts", "normaliser", "optimizer"),
    *("critic_optimizer", "evaluation", "logger", "trainer"),
)
BUILT_AS_IT_IS = ("policy", "algorithm", "reset", "prompts", "normaliser")  # by their options alone
NAME_BYTES = 64  # of a run's name: W&B's tags have no more, and what is put around it is still a folder's name
OWN_REWARD = "add one of your own by +suite.rewards.NAME._target_=MODULE.CLASS (docs/guides/reward.md)"
MEASURES = [key.split("/")[-1] for key in GLOSSARY if key.startswith("eval/<reward>/")]


class Task(enum.Enum):
    """What a command does."""

    finetune = "finetune"
    train_reward = "train_reward"
    best_of_n = "best_of_n"
    code = "code"
    das = "das"
    evaluate = "evaluate"


@dataclass
class Budget:
    """How much a run may spend; counted in images, so that any number of devices gives the same run."""

    iterations: int = MISSING  # rounds of sampling and training
    lr_factor: float = 1.0  # what the learning rate goes to, times itself,
    lr_ramp: int = 0  # in so many iterations; 0: at once


@dataclass
class Suite:
    """A base model with its prompts, rewards and budgets."""

    name: str = MISSING  # in messages, tags and run folders
    base: str = MISSING  # folder, or hub id
    revision: str | None = None  # of the hub's
    variant: str | None = None  # of its weight files, such as fp16
    feature_precision: str = "fp32"  # of what the critic sees: fp32, bf16, or auto
    feature_stride: int = 1  # of the steps that the critic sees: 2 for every second
    lr: dict[str, Any] = MISSING  # floats, by what is fine-tuned, then by the algorithm's schedule
    clip_range: float = 1e-4  # of the ratio pi_theta / pi_old, densities per latent dimension
    guard_clip_range: float = 4e-6  # GRPO-Guard's; goes with the root of the latent dimensions
    dpo_beta: float = 5000.0  # Diffusion-DPO's, of errors averaged over the latent dimensions; goes with their number
    lora_targets: list[str] = field(default_factory=lambda: ["to_q", "to_k", "to_v", "to_out.0"])  # with adapters
    normaliser_min_count: int = 16  # rewards of a prompt before its own moments count
    group: int = 16  # samples of a prompt, where they are compared with each other
    timestep_weighting: str = "uniform"  # how much a step counts: uniform, or variance
    timestep_fraction: float = 1.0  # share of the steps that are trained, the noisiest
    rewards: dict[str, Any] = MISSING  # what a policy may train on
    base_moments: dict[str, Any] = field(default_factory=dict)  # mean and std of rewards on the base
    judges: dict[str, Any] | None = None  # what only evaluates
    tower: dict[str, Any] = MISSING  # image embeddings that measure diversity and drift
    control: str | None = None  # what choosing the best of n base samples does, where it is known
    budgets: dict[str, Budget] = MISSING  # by name


@dataclass
class RewardTraining:
    """How a reward model learns, where task is train_reward."""

    model: dict[str, Any] = MISSING
    data: dict[str, Any] = MISSING
    optimizer: dict[str, Any] = MISSING
    max_epochs: int = MISSING
    patience: int = MISSING  # epochs without a better held-out loss
    centering: float = 0.05  # how strongly the offsets of prompts are drawn together


@dataclass
class CodeOptions:
    """How blocks are chosen, where task is code; see src/tasks/code.py."""

    block_size: int = MISSING
    n: Any = MISSING  # a number, or several for a curve


@dataclass
class DasOptions:
    """How particles are led, where task is das; see src/tasks/das.py."""

    particles: Any = MISSING  # a number, or several for a curve
    alpha: Any = MISSING  # likewise
    gamma: float | None = None
    ess_threshold: float = 0.5


@dataclass
class Config:
    """Every top-level key; docs/configuration/ shows these comments.

    Groups are `Any` here: their components check themselves by `_target_`.
    """

    suite: Suite = MISSING  # base model, prompts, rewards, budgets
    policy: dict[str, Any] = MISSING  # what is fine-tuned, and how it samples
    algorithm: dict[str, Any] = MISSING  # what a step is worth, and what it costs
    critic: dict[str, Any] = MISSING  # V(x_t, t), of algorithms that have one
    reset: dict[str, Any] = MISSING  # which neurons start afresh, and when
    regulariser: dict[str, Any] = field(
        default_factory=lambda: {"_target_": "src.regularisers.none.NoRegulariser"}
    )  # what keeps the policy near its base
    prompts: dict[str, Any] = MISSING  # what is trained on, and what is held out
    normaliser: dict[str, Any] = MISSING  # rewards of different prompts on one scale
    optimizer: dict[str, Any] = MISSING  # of the policy
    critic_optimizer: dict[str, Any] = MISSING  # of the critic
    evaluation: dict[str, Any] = MISSING  # what is measured on the way, and how
    callbacks: dict[str, Any] = field(default_factory=dict)  # the watch
    reward_training: RewardTraining | None = None  # how a reward learns
    code: CodeOptions | None = None  # how CoDe chooses (task=code)
    das: DasOptions | None = None  # how DAS leads particles (task=das)
    logger: dict[str, Any] = MISSING  # where curves go, beside metrics.jsonl
    trainer: dict[str, Any] = MISSING  # Lightning's: devices, precision

    task: Task = Task.finetune  # what the command does; experiments set it
    name: str | None = None  # of the experiment, in folders, groups and tags; null: the +experiment= chosen
    train_reward: Any = MISSING  # a name, or a list: their weighted sum, each standardised first; null: not known
    train_weights: list[float] | None = None  # of several rewards; null: 1 each
    budget: str = "default"  # a name of suite.budgets
    iterations: int = MISSING  # rounds of sampling and training
    samples_per_iteration: int = MISSING  # pictures an iteration
    samples_per_prompt: int = MISSING  # of them of one prompt; divides samples_per_iteration
    num_steps: int = MISSING  # denoising steps of a picture
    guidance: float = MISSING  # classifier-free guidance, in sampling and in training; 1: none
    microbatch: int = MISSING  # rows that go through the network at a time; fewer take less memory
    max_grad_norm: float = 1.0  # gradient-norm clip, of policy and critic apart
    lr_factor: float = 1.0  # what the policy's learning rate goes to, times itself,
    lr_ramp: int = 0  # in so many iterations; 0: at once
    critic_epochs: int = 1  # passes of the critic over an iteration's states; 10 explain several times as much
    critic_gradient_factor: float = 1.0  # multiplies the critic's clipped gradients; 2^-16: the authors' scaler
    neuron_probe: int = 1024  # states that the critic's neurons are measured on
    neuron_probe_scattered: bool = False  # states at random, not all steps of some samples
    checkpoint_every: int = 10  # iterations between checkpoints
    pairs: int = 24000  # comparisons that a reward learns from (task=train_reward)
    pictures: int = 8192  # pictures that these are drawn from
    pool: int = 256  # base samples a prompt that best-of-n chooses from
    seed: int = 0  # of everything that is drawn
    threads: int | None = None  # CPU threads; null leaves it to torch
    weights: Any = None  # to be evaluated: a path, a pattern, a list, or a hub id (task=evaluate)
    scale: Any = None  # how much of them is used, 1 is all; several draw a frontier: scale=0,0.5,1
    aig: Any = None  # or annealed importance guidance of these powers: 0 the tuned model, inf the base
    steps: list[int] | None = None  # numbers of the checkpoints, where their names do not tell
    queries_per_step: float | None = None  # images scored for training from one number to the next
    objective: str | None = None  # the final figure that a search is after, such as held_out/gold/gain
    run_dir: str | None = None  # the run folder; null: a new dated one under runs/
    resume: str | None = None  # go on with this run folder, or with the last


ConfigStore.instance().store(name="schema", node=Config)
OmegaConf.register_new_resolver("names", lambda group: ",".join(group), replace=True)  # to sweep over a group's keys


def default_values() -> dict[str, Any]:
    """The top-level keys that have a default, with it."""
    schema: Any = OmegaConf.to_container(OmegaConf.structured(Config), enum_to_str=True)
    return {key: value for key, value in schema.items() if value != MISSING}


def needed_keys() -> list[str]:
    """The top-level keys that have none: every run's configuration says them."""
    return [f.name for f in fields(Config) if f.name not in default_values()]


def default_of(cfg: dict[str, Any], key: str) -> Any:
    """The default of a component's option (critic.stride), by the signature of what is built; else `empty`."""
    *path, option = key.split(".")
    for part in path:
        cfg = cfg.get(part) if isinstance(cfg, dict) else None  # type: ignore[assignment]
    if not isinstance(cfg, dict) or "_target_" not in cfg:
        return inspect.Parameter.empty
    parameter = options_of(get_object(cfg["_target_"]))[0].get(option)
    return parameter.default if parameter else inspect.Parameter.empty


def options_of(target: Any) -> tuple[dict[str, inspect.Parameter], bool]:
    """The options of what is built, with its parents' where it hands others on to them; and whether any goes."""
    options: dict[str, inspect.Parameter] = {}
    constructors = (
        [vars(c)["__init__"] for c in target.__mro__ if "__init__" in vars(c)] if inspect.isclass(target) else [target]
    )
    for constructor in constructors:
        own = list(inspect.signature(constructor).parameters.values())[inspect.isclass(target) :]
        named = {p.name: p for p in own if p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)}
        options = named | options  # a child's comes first
        if not any(p.kind is p.VAR_KEYWORD for p in own):
            return options, False
    return options, True


def check(cfg: DictConfig) -> dict[str, Any]:
    """Resolves the configuration and checks every component against its signature.

    Returns the resolved configuration as plain containers. Raises UserError, one sentence, at the first fault.
    """
    if deleted := {f.name for f in fields(Config)} - set(cfg.keys()):
        raise UserError(f"{min(deleted)} is missing: a run needs it, so leave out ~{min(deleted)}.")
    if cfg.budget not in cfg.suite.budgets:
        raise UserError(f"budget={cfg.budget} is not one of suite={cfg.suite.name}: {', '.join(cfg.suite.budgets)}.")
    if cfg.task == Task.train_reward and not cfg.suite.judges:
        raise UserError(
            f"task=train_reward learns from the comparisons of a judge, and suite={cfg.suite.name} has none: "
            "choose suite=mini."
        )
    _check_moments(cfg)
    if OmegaConf.is_list(cfg.train_reward):
        _mix(cfg)
    try:
        for first in ("algorithm", "policy"):  # because the learning rate goes by their options
            _check_node(OmegaConf.to_container(cfg[first], resolve=True, throw_on_missing=True), first)
        resolved: Any = OmegaConf.to_container(cfg, resolve=True, throw_on_missing=True, enum_to_str=True)
    except OmegaConfBaseException as error:
        if "base_moments" in str(error):
            raise UserError(
                f"suite={cfg.suite.name} does not say how the base's pictures score with an ensemble's members: run "
                f"+experiment=best_of_n_hps suite={cfg.suite.name} pool=8, and give each member's mean and base_sd at "
                "n = 1 as '+suite.base_moments.hps={mean: ..., std: ...}' and so on."
            ) from error
        if isinstance(error, MissingMandatoryValue):
            raise UserError(f"{error.full_key} is missing: give {error.full_key}=VALUE.") from error
        raise UserError(f"{error.full_key or 'the configuration'}: {first_line(error)}.") from error
    resolved = expanded(resolved)
    resolved["callbacks"] = {name: each for name, each in (resolved["callbacks"] or {}).items() if each is not None}
    known = [f.name for f in fields(Config)]
    for key in resolved:
        if key not in known:
            raise UserError(no_key(key))
    _check_schema(resolved)
    _check_node(resolved, "")
    _check_components(resolved)
    _check_numbers(resolved)
    return resolved


def _check_moments(cfg: DictConfig) -> None:
    for name, moments in cfg.suite.base_moments.items():
        found = {key: moments.get(key) for key in ("mean", "std")} if OmegaConf.is_dict(moments) else {}
        if not found or not all(isinstance(value, int | float) for value in found.values()):
            raise UserError(f"suite.base_moments.{name}={moments}: give two numbers, {{mean: ..., std: ...}}.")


def _mix(cfg: DictConfig) -> None:
    """Makes one reward, `mixed`, of the several to be trained on. Raises UserError where they cannot be mixed."""
    names, suite = list(cfg.train_reward), cfg.suite
    given = f"train_reward=[{','.join(map(str, names))}]"
    unknown = [name for name in names if name not in suite.rewards]
    if unknown or not names or len(set(names)) < len(names):
        known = ", ".join(suite.rewards)
        raise UserError(f"{given}: name rewards of suite={suite.name}, each once: {known}; {OWN_REWARD}.")
    if len(names) == 1:
        cfg.train_reward = names[0]
        return
    weights = list(cfg.train_weights) if cfg.train_weights is not None else [1.0] * len(names)
    if len(weights) != len(names):
        raise UserError(f"train_weights={weights}: give one for each of {given}.")
    unmeasured = [name for name in names if name not in suite.base_moments]
    if unmeasured:
        raise UserError(
            f"{given}: rewards are mixed in standard deviations, and suite.base_moments does not say how the base's "
            f"pictures score with {unmeasured[0]}: run +experiment=best_of_n_hps suite={suite.name} pool=8, and give "
            f"its mean and base_sd at n = 1 as '+suite.base_moments.{unmeasured[0]}={{mean: ..., std: ...}}'."
        )
    moments = [suite.base_moments[name] for name in names]
    with open_dict(cfg):
        cfg.suite.rewards["mixed"] = {
            "_target_": "src.rewards.ensemble.EnsembleReward",
            "members": [OmegaConf.to_container(suite.rewards[name], resolve=True) for name in names],
            "combine": "sum",
            "weights": [float(weight) for weight in weights],
            "centres": [float(each.mean) for each in moments],
            "scales": [float(each.std) for each in moments],
        }
        cfg.train_reward, cfg.train_weights = "mixed", None


def run_name(chosen: str | None, experiment: str | None, fallback: str) -> str:
    """What a new run is called: as chosen, else by its experiment. It is part of a folder's name, and a tag of W&B.

    Raises UserError on a name that cannot be both; an experiment's is cut.
    """
    if chosen is None:
        name = (experiment or fallback).replace("/", "_")
        return name.encode()[:NAME_BYTES].decode(errors="ignore")
    faults = {
        "it is empty": not chosen.strip(),
        "it holds a /": "/" in chosen,
        "it holds a sign that cannot be printed": not chosen.isprintable(),
        f"it is longer than {NAME_BYTES} bytes": len(chosen.encode(errors="replace")) > NAME_BYTES,
    }
    if found := [fault for fault, holds in faults.items() if holds]:
        raise UserError(f"name={chosen!r} cannot name folders and W&B's tags: {found[0]}.")
    return chosen


def added_groups() -> list[str]:
    """Groups that have no default, and are chosen with a plus: +experiment=NAME."""
    with_default = {f.name for f in fields(Config)} | {"hydra", "reward_training"}
    named = {path.parent.name for path in CONF.glob("*/*.yaml")} - with_default
    return sorted([*named, "reward_training", "sweeps"])


def no_key(key: str) -> str:
    """The sentence of a top-level key, or a group, that there is not."""
    known = {f.name: f.name for f in fields(Config)} | {group: f"+{group}" for group in added_groups()}
    known |= {f"hydra/{part}": f"hydra/{part}" for part in ("launcher", "sweeper")}
    close = difflib.get_close_matches(key, known, n=1)
    instead = f"did you mean {known[close[0]]}?" if close else "--help lists the groups, and --cfg job every key."
    return f"{key} is not a key of the configuration: {instead}"


def suggestion(key: str, known: list[str]) -> str:
    """Another spelling of an option, or all that there are."""
    close = difflib.get_close_matches(key, known, n=1)
    return f"did you mean {close[0]}?" if close else f"choose from {', '.join(known)}."


def _check_schema(cfg: dict[str, Any]) -> None:
    """Raises UserError on a key of a part with a schema that the schema does not have; with a plus Hydra lets it in."""
    budgets: dict[str, Any] = {f"suite.budgets.{name}": Budget for name in cfg["suite"]["budgets"]}
    parts = {"suite": Suite, "reward_training": RewardTraining, "code": CodeOptions, "das": DasOptions} | budgets
    for path, schema in parts.items():
        node: Any = cfg
        for part in path.split("."):
            node = node[part]
        known = [f.name for f in fields(schema)]
        for key in node or {}:
            if key not in known:
                raise UserError(f"{path}.{key} is not an option of {path}: {suggestion(key, known)}")


def no_target(group: str, choice: str | None) -> str:
    """The sentence of a group whose choice does not say what is built."""
    if choice is None:
        return f"{group} has no _target_, which says what it is; a run needs it: leave out what takes it away."
    return f"conf/{group}/{choice}.yaml has no _target_, which says what it is: begin it with _target_: MODULE.CLASS."


def _chosen(group: str) -> str | None:
    """What the command chose of a group, where it is known."""
    return HydraConfig.get().runtime.choices.get(group) if HydraConfig.initialized() else None


def _check_components(cfg: dict[str, Any]) -> None:
    """What is built by name says what it is, and has every option that it cannot do without."""
    rewards = {f"suite.rewards.{name}": each for name, each in cfg["suite"]["rewards"].items()}
    judges = {f"suite.judges.{name}": each for name, each in (cfg["suite"]["judges"] or {}).items()}
    callbacks = {f"callbacks.{name}": each for name, each in cfg["callbacks"].items()}
    groups = {name: cfg[name] for name in GROUPS}
    for path, options in (rewards | judges | callbacks | groups).items():
        if not isinstance(options, dict) or "_target_" not in options:
            if path in GROUPS:
                raise UserError(no_target(path, _chosen(path)))
            raise UserError(f"{path}={options} has no _target_, which says what it is; or leave it out: ~{path}.")
        check_base(target_of(options, path), path)
    for path, options in (rewards | judges | callbacks | {name: cfg[name] for name in BUILT_AS_IT_IS}).items():
        parameters = options_of(target_of(options, path))[0].values()
        needed = [p.name for p in parameters if p.default is p.empty and p.name != "run_dir"]
        if missing := [name for name in needed if name not in options]:
            raise UserError(
                f"{path}.{missing[0]} is missing: {options['_target_']} needs it: give ++{path}.{missing[0]}=VALUE."
            )


def _check_trainer(cfg: dict[str, Any]) -> None:
    """Raises UserError on options of Lightning's that a run cannot have, or that would cut it short without a word."""
    trainer = cfg["trainer"]
    if str(trainer.get("precision", "")).endswith("-true") and trainer["precision"] != "32-true":
        raise UserError(
            f"trainer.precision={trainer['precision']}: log-probabilities need weights in float32; choose 32-true, "
            "bf16-mixed or 16-mixed."
        )
    if trainer.get("fast_dev_run"):
        raise UserError("trainer.fast_dev_run keeps nothing of what it runs: for a short run there is +debug=tiny.")
    if cfg["task"] != "finetune":
        if trainer.get("devices", 1) not in (1, "1"):
            raise UserError(f"trainer.devices={trainer['devices']}: only fine-tuning runs on several devices.")
        return
    for key in CUTS_SHORT:
        if key in trainer:
            raise UserError(f"trainer.{key}={trainer[key]}: how long a run lasts is iterations=.")
    if trainer.get("max_epochs", 1) != 1:
        raise UserError(f"trainer.max_epochs={trainer['max_epochs']} must stay 1: how long a run lasts is iterations=.")


def _check_numbers(cfg: dict[str, Any]) -> None:
    _check_trainer(cfg)
    for key in (
        "iterations",
        "samples_per_iteration",
        "samples_per_prompt",
        "num_steps",
        "microbatch",
        "checkpoint_every",
        "pairs",
        "pictures",
        "pool",
    ):
        if cfg[key] < 1:
            raise UserError(f"{key}={cfg[key]} must be at least 1.")
    training = cfg["reward_training"] or {"max_epochs": 1, "patience": 0}
    if training["max_epochs"] < 1 or training["patience"] < 0:
        raise UserError("reward_training: max_epochs must be at least 1, and patience must not be negative.")
    if cfg["max_grad_norm"] <= 0:
        raise UserError(f"max_grad_norm={cfg['max_grad_norm']} must be above 0.")
    if cfg["threads"] is not None and cfg["threads"] < 1:
        raise UserError(f"threads={cfg['threads']} must be at least 1, or null for torch's choice.")
    if not 0 <= cfg["seed"] < 2**32:
        raise UserError(f"seed={cfg['seed']} lies outside 0..2^32 - 1.")
    if cfg["lr_factor"] < 0 or cfg["lr_ramp"] < 0:
        raise UserError(f"lr_factor={cfg['lr_factor']} and lr_ramp={cfg['lr_ramp']} must not be negative.")
    for key in ("optimizer", "critic_optimizer"):
        if cfg[key].get("lr", 0) < 0:
            raise UserError(f"{key}.lr={cfg[key]['lr']} must not be negative.")
    samples, per_update = cfg["samples_per_iteration"], cfg["algorithm"].get("samples_per_update")
    if per_update is not None and per_update < 1:
        raise UserError(f"algorithm.samples_per_update={per_update} must be at least 1, or null for all.")
    if per_update and samples % per_update:
        raise UserError(
            f"samples_per_iteration={samples} is not a multiple of algorithm.samples_per_update={per_update}."
        )
    if cfg["task"] == "train_reward":
        return
    if cfg["train_reward"] in (cfg["suite"]["judges"] or {}):
        raise UserError(f"train_reward={cfg['train_reward']} is a judge: it evaluates, and no policy trains on it.")
    _check_trained(cfg)
    measured = [*cfg["suite"]["rewards"], *(cfg["suite"]["judges"] or {})]
    for name in measured:
        if not re.fullmatch(PARTS["<reward>"], name):
            raise UserError(f"suite.rewards.{name}: a reward's name is made of a-z, 0-9 and _, for keys and files.")
    if cfg["objective"]:
        where, *rest = cfg["objective"].split("/")
        if where not in ("eval", "held_out") or len(rest) != 2 or rest[0] not in measured or rest[1] not in MEASURES:
            example, known = f"held_out/{measured[-1]}/gain", ", ".join(MEASURES)
            raise UserError(
                f"objective={cfg['objective']} is no figure of an evaluation, such as {example}; measures: {known}."
            )


def _check_trained(cfg: dict[str, Any]) -> None:
    """Raises UserError on a reward that the suite does not have; of weights of others none need be known."""
    evaluates, name, suite = cfg["task"] == "evaluate", cfg["train_reward"], cfg["suite"]
    if name in suite["rewards"] or (evaluates and name is None):
        return
    unknown = "; where it is not known leave train_reward= out" if evaluates else ""
    raise UserError(
        f"train_reward={name} is not a reward of suite={suite['name']}: {', '.join(suite['rewards'])}; {OWN_REWARD}"
        f"{unknown}."
    )


def _check_node(node: Any, path: str) -> None:
    if isinstance(node, list):
        for k, child in enumerate(node):
            _check_node(child, f"{path}[{k}]")
    if isinstance(node, float) and math.isnan(node):
        raise UserError(f"{path}=nan is no number: give one.")
    if not isinstance(node, dict):
        return
    if "_target_" in node:
        _check_signature(node, path)
    for key, child in node.items():
        _check_node(child, f"{path}.{key}" if path else key)


def _check_signature(node: dict[str, Any], path: str) -> None:
    parameters, any_goes = options_of(target_of(node, path))
    if any_goes:
        return
    for key, value in node.items():
        if key.startswith("_") and key.endswith("_"):
            continue
        if key not in parameters:
            hint = suggestion(key, list(parameters))
            raise UserError(f"{path}.{key} is not an option of {node['_target_']}: {hint}")
        _check_type(value, parameters[key].annotation, f"{path}.{key}")
        if key in POSITIVE and value is not None and value < 1:
            raise UserError(f"{path}.{key}={value} must be at least 1.")
        if key in ABOVE_ZERO and value is not None and value <= 0:
            raise UserError(f"{path}.{key}={value} must be above 0.")


def _check_type(value: Any, annotation: Any, path: str) -> None:
    if annotation is inspect.Parameter.empty or isinstance(annotation, str):
        return
    if any(isinstance(part, dict) for part in (value if isinstance(value, list) else [value])):
        return  # a component, or several, yet to be built
    if isinstance(value, list) and is_bearable(tuple(value), annotation, conf=BeartypeConf(is_pep484_tower=True)):
        return  # YAML has no tuples
    if not is_bearable(value, annotation, conf=BeartypeConf(is_pep484_tower=True)):
        wanted = annotation.__name__ if isinstance(annotation, type) else str(annotation).replace("typing.", "")
        raise UserError(f"{path}={value!r} is of the wrong type: it takes {wanted}.")
