from pathlib import Path

import pytest
from tally import Tally


def test_counts_of_a_kind_add_up_and_what_was_lost_is_shown():
    tally = Tally()
    for survived in (2, 3):
        tally.add("kill -9 in a step", 3, survived)
    tally.add("flipped bit", 10, 10)
    assert tally.lines() == [
        "kind               tried  survived  lost",
        "kill -9 in a step      6         5     1",
        "flipped bit           10        10     0",
        "in all                16        15     1",
    ]


def test_more_cannot_survive_than_was_tried():
    with pytest.raises(AssertionError, match="flipped bit"):
        Tally().add("flipped bit", 1, 2)


def test_the_table_stands_at_the_end_of_a_session(pytester):
    pytester.makepyfile("def test_one(tally): tally.add('kill', 4, 3)\ndef test_two(tally): pass")
    output = pytester.runpytest("-p", "tally", "-p", "no:cacheprovider").stdout
    output.re_match_lines(["=+ faults survived =+", "kind .*", r"kill +4 +3 +1", "in all .*"])


def test_without_counts_there_is_no_table(pytester):
    pytester.makepyfile("def test_one(tally): pass")
    pytester.runpytest("-p", "tally", "-p", "no:cacheprovider").stdout.no_fnmatch_line("*faults survived*")


@pytest.mark.slow
def test_counts_of_several_test_processes_are_added_up(pytester, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent))
    pytester.makepyfile(
        test_a="def test_one(tally): tally.add('kill', 4, 3)",
        test_b="def test_two(tally): tally.add('kill', 2, 2)",
    )
    output = pytester.runpytest_subprocess("-p", "tally", "-p", "no:cacheprovider", "-n", "2").stdout
    output.re_match_lines([r"kill +6 +5 +1"])
