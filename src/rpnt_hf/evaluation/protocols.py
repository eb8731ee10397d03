"""Which runs a protocol of `rpnt evaluate` consists of: targets, sources, methods, amounts of training data.

Plans only (DESIGN section 5); `runner.py` executes them and `summary.py` compares them.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from rpnt_hf.errors import ConfigurationError, DatasetError, closest_names

__all__ = [
    "COMPARATORS", "MODES", "PROTOCOLS", "Amount", "Base", "Run", "Session", "list_amounts",
    "plan",
]  # fmt: skip

PROTOCOLS = (
    "within-session", "few-shot", "cross-session", "cross-task", "cross-subject", "ablation",
)  # fmt: skip
COMPARATORS = ("ridge", "kalman", "mlp", "gru", "lstm")
# How our own decoder begins and what of it is trained. "pretrained" bases have never seen behaviour;
# "decoder" bases were trained to decode the source sessions; what is "carried" or "aligned" is not trained.
MODES: Mapping[str, str | None] = {
    "scratch": None,
    "full": "pretrained",
    "frozen": "pretrained",
    "adapters": "pretrained",
    "units": "decoder",
    "full from decoder": "decoder",
    "carried": "decoder",
    "aligned": "decoder",
}
# Without labels: for sessions whose units have the ids of an earlier session, so only where they are named.
UNLABELLED = ("carried", "aligned")
TRANSFERS = ("few-shot", "cross-session", "cross-task", "cross-subject")
# Parts that an ablation takes away where a recipe has them, and adds where it has not: the option of
# training/finetune.py, its value without the part, and its value with it.
PARTS: Mapping[str, tuple[str, Any, Any]] = {
    "context kernels": ("model.context_attention", {"enabled": False}, {"enabled": True}),
    "stem": ("model.stem_kernel", 1, 9),
    "recurrent stem": ("model.recurrent_stem", False, True),
    "anchors": ("model.num_anchors", 0, 4),
    "attention window": ("model.attention_window", None, 25),
    "layer scale": ("model.layer_scale", None, 0.1),
    "unit dropout": ("unit_dropout", 0.0, 0.1),
    "spike dropout": ("spike_dropout", 0.0, 0.5),
    "time warp": ("time_warp", 0.0, 0.2),
    "lead limit": ("lead_bins", None, 20),
    "weight averaging": ("optimizer.averaging_decay", 0.0, 0.99),
}
ENCODINGS = ("mrope", "rope", "sinusoidal", "none")
WHOLE = "all"  # the arm that is the recipe itself


def ablation_arms(options: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Lists the arms of an ablation: a recipe as it is, without each part that it has, with each other one.

    Without anchors metadata turn nothing where there is no spatial layer; that arm is then one of rope, to be
    compared with the arm of rope.

    Args:
        options (`Mapping[str, Any]`): What the recipe trains with, by the names of `PARTS`, and
            "model.position_encoding".

    Returns:
        `dict[str, dict[str, Any]]`: Name of an arm to the options that differ in it.
    """
    arms: dict[str, dict[str, Any]] = {WHOLE: {}}
    for part, (name, without, with_it) in PARTS.items():
        value = options[name]
        has_it = value["enabled"] if isinstance(value, Mapping) else value != without
        arms[f"no {part}" if has_it else f"with {part}"] = {name: without if has_it else with_it}
    encoding = "model.position_encoding"
    if "no anchors" in arms and _rotates_metadata_by_anchors(options):
        arms["no anchors, encoding rope"] = {**arms.pop("no anchors"), encoding: "rope"}
    return arms | {
        f"encoding {other}": {encoding: other} for other in ENCODINGS if other != options[encoding]
    }


def _rotates_metadata_by_anchors(options: Mapping[str, Any]) -> bool:
    """Whether without anchors metadata would turn nothing, which a configuration refuses."""
    turns_metadata = any(axis["name"] != "time" and axis["num_pairs"] for axis in options["model.mrope_axes"])
    is_mrope = options["model.position_encoding"] == "mrope"
    return is_mrope and turns_metadata and not options["model.num_spatial_layers"]


@dataclass(frozen=True)
class Session:
    """What a plan needs to know of a session.

    Args:
        session_id (`str`): Its name.
        subject_id (`str`, *optional*): Whose it is.
        task (`str`, *optional*): What was done.
        num_trials (`int`): Training trials with scored bins.
    """

    session_id: str
    subject_id: str | None
    task: str | None
    num_trials: int


@dataclass(frozen=True)
class Amount:
    """How many of the training trials a run may learn from.

    Args:
        name (`str`): As it is shown, "10 %" or "16 trials".
        trials (`int`, *optional*): The number; None for all.
    """

    name: str
    trials: int | None


ALL_TRIALS = Amount("100 %", None)


@dataclass(frozen=True)
class Base:
    """A checkpoint that several runs begin from.

    Args:
        kind (`str`): "pretrained" (without labels) or "decoder" (trained to decode).
        sources (`tuple[str, ...]`): Sessions it learns from; never the target of a run that uses it.
        seed (`int`): Its seed.
    """

    kind: str
    sources: tuple[str, ...]
    seed: int


@dataclass(frozen=True)
class Run:
    """One decoder, trained and scored on one session.

    Args:
        method (`str`): One of `COMPARATORS` or of `MODES`.
        session_id (`str`): The target.
        amount (`Amount`): Training trials it may learn from.
        seed (`int`): Seed of weights, order, augmentation and the choice of trials.
        arm (`str`, *optional*, defaults to `""`): Arm of an ablation.
        base (`Base`, *optional*): What it begins from.
        overrides (`Mapping[str, Any]`, *optional*): Options of training/finetune.py that differ.
    """

    method: str
    session_id: str
    amount: Amount
    seed: int
    arm: str = ""
    base: Base | None = None
    overrides: Mapping[str, Any] = field(default_factory=dict, hash=False)

    @property
    def name(self) -> str:
        """What the run is called in tables: its arm or its method."""
        return self.arm or self.method


def plan(
    protocol: str,
    sessions: Sequence[Session],
    *,
    targets: Sequence[str] = (),
    methods: Sequence[str] = (),
    amounts: Sequence[str] = (),
    seeds: Sequence[int] = (0, 1, 2),
    held_out: Sequence[str] = (),
    arms: Mapping[str, Mapping[str, Any]] | None = None,
) -> tuple[list[Run], dict[str, str]]:
    """Lists the runs of a protocol.

    Args:
        protocol (`str`): One of `PROTOCOLS`.
        sessions (`Sequence[Session]`): Sessions of the dataset.
        targets (`Sequence[str]`, *optional*): Sessions to decode; all where empty.
        methods (`Sequence[str]`, *optional*): Comparators, modes, or arms of the ablation; all where empty.
        amounts (`Sequence[str]`, *optional*):
            Training data, as "10%" or "16"; those of the protocol where empty.
        seeds (`Sequence[int]`, *optional*, defaults to `(0, 1, 2)`): Seeds, at least one.
        held_out (`Sequence[str]`, *optional*): Sessions that no base may learn from, beside the target.
        arms (`Mapping[str, Mapping[str, Any]]`, *optional*): What `ablation_arms` gave; for an ablation.

    Returns:
        `tuple[list[Run], dict[str, str]]`: The runs, and the targets that are left out, each with the reason.

    Raises:
        ConfigurationError: A name is unknown or an amount cannot be read.
        DatasetError: No target remains.
    """
    _check_names("protocol", [protocol], PROTOCOLS)
    known = [session.session_id for session in sessions]
    _check_names("targets", targets, known)
    _check_names("held_out", held_out, known)
    if not seeds:
        raise ConfigurationError("`seeds` must hold at least one number, got none.")
    runs: list[Run] = []
    left_out: dict[str, str] = {}
    for session in sessions:
        if targets and session.session_id not in targets:
            continue
        if session.num_trials == 0:
            left_out[session.session_id] = "it has no training trial with behaviour"
            continue
        sources = _sources(protocol, session, [one for one in sessions if one.session_id not in held_out])
        if protocol in TRANSFERS and not sources:
            left_out[session.session_id] = f"there is no other session for {protocol}"
            continue
        if protocol == "ablation":
            assert arms is not None
            named = list(methods) or list(arms)
            _check_names("methods", named, list(arms))
            runs += [
                Run("scratch", session.session_id, ALL_TRIALS, seed, arm=arm, overrides=arms[arm])
                for arm in named
                for seed in seeds
            ]
            continue
        possible = [*COMPARATORS, *(MODES if protocol in TRANSFERS else ("scratch",))]
        chosen = list(methods) or [name for name in possible if name not in UNLABELLED]
        _check_names("methods", chosen, possible)
        for amount in list_amounts(protocol, session, amounts):
            for method in chosen:
                for seed in seeds:
                    kind = MODES.get(method)
                    base = None if kind is None else Base(kind, sources, seed)
                    runs.append(Run(method, session.session_id, amount, seed, base=base))
    if not runs:
        reasons = "; ".join(f"{name}: {reason}" for name, reason in left_out.items())
        raise DatasetError(
            f"Protocol '{protocol}' must have at least one session to decode, got none ({reasons}). Build a "
            "dataset with more sessions, or choose another protocol."
        )
    return runs, left_out


def _sources(protocol: str, target: Session, sessions: Sequence[Session]) -> tuple[str, ...]:
    """Names the sessions that a base for this target may learn from."""

    def fits(other: Session) -> bool:
        if other.session_id == target.session_id:
            return False
        same_subject, same_task = other.subject_id == target.subject_id, other.task == target.task
        return {
            "cross-session": same_subject and same_task,
            "cross-task": not same_task,
            "cross-subject": not same_subject,
        }.get(protocol, True)

    return tuple(sorted(other.session_id for other in sessions if fits(other)))


def list_amounts(protocol: str, session: Session, named: Sequence[str]) -> list[Amount]:
    """Lists amounts of training data for a session, fewest first, each number of trials once.

    Args:
        protocol (`str`): Gives the amounts where none are named.
        session (`Session`): The target.
        named (`Sequence[str]`): Amounts, as "10%" or "16".

    Returns:
        `list[Amount]`: At least one.

    Raises:
        ConfigurationError: An amount cannot be read.
    """
    if protocol == "few-shot":
        named = named or ("1%", "5%", "10%", "25%", "50%", "100%", "4", "8", "16", "32")
    amounts: dict[int, Amount] = {}
    for text in named or ("100%",):
        number = text.strip().removesuffix("%").strip()
        try:
            value = float(number)
        except ValueError:
            value = -1.0
        is_share = text.strip().endswith("%")
        if value <= 0 or (is_share and value > 100) or (not is_share and value != int(value)):
            raise ConfigurationError(
                f"`amounts` must be shares such as '10%' or numbers of trials such as '16', got '{text}'."
            )
        trials = max(1, round(value / 100 * session.num_trials)) if is_share else int(value)
        if trials > session.num_trials:
            continue  # a session with fewer trials has its largest amount as "100%"
        name = f"{number} %" if is_share else f"{number} trials"
        whole = trials == session.num_trials
        amounts.setdefault(trials, Amount(name, None if whole else trials))
    if not amounts:
        amounts[session.num_trials] = ALL_TRIALS
    return [amounts[trials] for trials in sorted(amounts)]


def _check_names(what: str, names: Sequence[str], known: Sequence[str]) -> None:
    for name in names:
        if name not in known:
            raise ConfigurationError(
                f"`{what}` must be among {', '.join(known)}, got '{name}'.{closest_names(name, known)}"
            )
