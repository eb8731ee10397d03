"""Plans of evaluations: who is decoded, who it learns from, with how many trials."""

import pytest

from rpnt_hf import RPNTConfig
from rpnt_hf.errors import ConfigurationError, DatasetError
from rpnt_hf.evaluation.protocols import COMPARATORS, MODES, PARTS, PROTOCOLS, Session, ablation_arms, plan
from rpnt_hf.evaluation.runner import Recipe
from rpnt_hf.scripts import find_script

RECIPES = sorted(
    path.name.removesuffix("_comparators.yaml")
    for path in find_script("training/configs").glob("*_comparators.yaml")
)
SESSIONS = [
    Session("c1", "C", "center_out", 100),
    Session("c2", "C", "center_out", 50),
    Session("c3", "C", "random_target", 40),
    Session("m1", "M", "center_out", 20),
]


def test_within_a_session_every_comparator_and_our_decoder_from_scratch_run_with_every_seed():
    runs, left_out = plan("within-session", SESSIONS, seeds=[0, 1])
    assert len(runs) == 4 * (len(COMPARATORS) + 1) * 2
    assert {run.method for run in runs} == {*COMPARATORS, "scratch"}
    assert all(run.base is None and run.amount.trials is None for run in runs)
    assert left_out == {}


@pytest.mark.parametrize(
    "protocol", [name for name in PROTOCOLS if name not in ("within-session", "ablation")]
)
def test_no_base_has_ever_seen_the_session_that_is_decoded(protocol):
    runs, _ = plan(protocol, SESSIONS, methods=list(MODES), seeds=[0])
    with_base = [run for run in runs if run.base]
    assert {run.method for run in with_base} == {mode for mode, kind in MODES.items() if kind}
    for run in with_base:
        assert run.base.sources and run.session_id not in run.base.sources


def sources_of(protocol, target):
    runs, _ = plan(protocol, SESSIONS, targets=[target], methods=["full"], seeds=[0], amounts=["100%"])
    return runs[0].base.sources


def test_sources_follow_the_protocol():
    assert sources_of("cross-session", "c1") == ("c2",)
    assert sources_of("cross-task", "c1") == ("c3",)
    assert sources_of("cross-subject", "c1") == ("m1",)
    assert sources_of("few-shot", "c1") == ("c2", "c3", "m1")


def test_a_session_without_sources_is_left_out_with_its_reason():
    runs, left_out = plan("cross-session", SESSIONS, seeds=[0])
    assert {run.session_id for run in runs} == {"c1", "c2"}
    assert left_out.keys() == {"c3", "m1"} and "no other session" in left_out["m1"]
    with pytest.raises(DatasetError, match=r"at least one session to decode.*m1: there is no other session"):
        plan("cross-session", SESSIONS[3:])


def test_amounts_are_trials_of_the_session_and_each_number_comes_once():
    runs, _ = plan("few-shot", SESSIONS, targets=["m1"], methods=["ridge"], seeds=[0])
    # 1 % and 5 % of 20 trials are both one trial; 32 trials are more than there are.
    assert [(run.amount.name, run.amount.trials) for run in runs] == [
        ("1 %", 1), ("10 %", 2), ("4 trials", 4), ("25 %", 5), ("8 trials", 8), ("50 %", 10),
        ("16 trials", 16), ("100 %", None),
    ]  # fmt: skip


@pytest.mark.parametrize("recipe", ["tiny", "reach"])
def test_an_ablation_takes_each_part_away_or_adds_it(recipe):
    options = Recipe.named(recipe).options()
    arms = ablation_arms(options)
    assert len(arms) == 1 + len(PARTS) + 3
    assert arms["all"] == {}
    for arm, overrides in arms.items():
        for name, value in overrides.items():
            assert name in options
            assert options[name] != value, arm
    wanted = "with" if recipe == "tiny" else "no"
    assert f"{wanted} recurrent stem" in arms
    runs, _ = plan("ablation", SESSIONS, targets=["c1"], seeds=[0], arms=arms)
    assert [run.name for run in runs] == list(arms)
    assert [dict(run.overrides) for run in runs] == list(arms.values())


@pytest.mark.parametrize("recipe", RECIPES)
def test_every_arm_of_every_recipe_is_a_network_that_can_be_built(recipe):
    """Without anchors metadata would turn nothing, so the arm without them knows time alone."""
    options = Recipe.named(recipe).options()
    fields = Recipe.named(recipe).model(transfer=False)
    arms = ablation_arms(options)
    for overrides in arms.values():
        prefix = "model."
        own = {
            name.removeprefix(prefix): value for name, value in overrides.items() if name.startswith(prefix)
        }
        RPNTConfig.preset(options["preset"], **{**fields, **own})
    assert ("no anchors, encoding rope" in arms) == (
        recipe in ("neuropixel_slots", "perich_miller", "tiny", "transfer")
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"protocol": "few_shot"}, "`protocol` must be among.*Did you mean `few-shot`"),
        ({"targets": ["c4"]}, "`targets` must be among c1, c2, c3, m1, got 'c4'"),
        ({"methods": ["transformer"]}, "`methods` must be among ridge"),
        ({"methods": ["full"]}, "`methods` must be among ridge"),  # within a session there is no base
        ({"amounts": ["ten"]}, "`amounts` must be shares.*got 'ten'"),
        ({"amounts": ["0%"]}, "got '0%'"),
        ({"amounts": ["2.5"]}, "got '2.5'"),
        ({"seeds": []}, "`seeds` must hold at least one number"),
    ],
)
def test_names_and_numbers_that_cannot_be_are_refused(arguments, message):
    with pytest.raises(ConfigurationError, match=message):
        plan(**{"protocol": "within-session", "sessions": SESSIONS, **arguments})
