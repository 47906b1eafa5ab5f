"""The benchmarks' own judgement: how cuts are matched to the truth, and how a miss is told."""

from pathlib import Path

import pytest

from benchmarks.measuring import Costs, cost_of, paired_ratio
from benchmarks.report import Section, Table, document, updated, within
from benchmarks.scenes import Tally, Truth, count, truth_of


def tally_of(found_s: list[float], truth: Truth) -> tuple[int, int, int]:
    tally = Tally()
    count(tally, found_s, truth, fps=25.0)
    return tally.right, tally.wrong, tally.missed


def test_a_cut_one_frame_off_is_right_and_two_frames_off_is_wrong_and_missed() -> None:
    truth = Truth([1.0], [])
    assert tally_of([1.04], truth) == (1, 0, 0)
    assert tally_of([1.08], truth) == (0, 1, 1)


def test_one_true_cut_is_found_once_however_many_cuts_are_near() -> None:
    assert tally_of([0.96, 1.0, 1.04], Truth([1.0], [])) == (1, 2, 0)
    assert tally_of([1.0], Truth([0.96, 1.0], [])) == (1, 0, 1)


def test_a_cut_within_a_fade_does_not_count() -> None:
    truth = Truth([5.0], [(2.0, 3.0)])
    assert tally_of([2.5, 5.0], truth) == (1, 0, 0)
    assert tally_of([3.5, 5.0], truth) == (1, 1, 0)


def test_truth_files_may_hold_comments_and_may_be_missing(tmp_path: Path) -> None:
    clip = tmp_path / "a.mp4"
    assert truth_of(clip) == Truth([], [])
    clip.with_name("a.mp4.cuts.txt").write_text("# viewed\n1.25\n\n3.5  a comment\n")
    clip.with_name("a.mp4.gradual.txt").write_text("2 2.5 a fade to black\n")
    assert truth_of(clip) == Truth([1.25, 3.5], [(2.0, 2.5)])


def test_a_missed_target_is_marked_in_the_summary_and_told_with_its_reason() -> None:
    lines = [within("cost", 3.0, 2.0, " s", "it does too much"), within("memory", 1.0, 2.0, " MB", "never told")]
    text = document([Section("Things", "How.", lines)], "Machine: one.")
    assert "| cost | 3.00 s | at most 2 s | **missed** |" in text
    assert "| memory | 1.00 MB | at most 2 MB | met |" in text
    assert "Missed, cost: it does too much" in text
    assert "never told" not in text


def test_work_is_measured_in_a_process_of_its_own() -> None:
    held: list[bytes] = []

    def work() -> int:
        held.append(b"x" * (64 << 20))
        return sum(range(3_000_000)) % 7

    cost = cost_of(work)
    assert held == []
    assert cost.result == sum(range(3_000_000)) % 7
    assert cost.cpu_s > 0
    assert cost.peak_mb > 64


def test_work_that_fails_is_no_measurement() -> None:
    with pytest.raises(SystemExit):
        cost_of(lambda: 1 / 0)


def test_a_ratio_compares_rounds_with_their_own_neighbours() -> None:
    assert paired_ratio(Costs([2.0, 6.0, 2.2]), Costs([1.0, 3.0, 1.0])) == 2.0


def test_one_section_is_measured_anew_and_the_others_stay_as_they_stand() -> None:
    first = [
        Section("Things", "How.", [within("cost", 3.0, 2.0, " s", "it does too much")]),
        Section("Others", "So.", [within("memory", 1.0, 2.0, " MB", "")], [Table(["a", "b"], [["1", "2"]])]),
    ]
    before = document(first, "Machine: one.")
    assert updated(before, [], "Machine: two.") == before
    again = updated(before, [Section("Things", "Anew.", [within("cost", 1.0, 2.0, " s", "")])], "Machine: two.")
    assert "Machine: one." in again
    assert "Machine: two." not in again
    assert "| cost | 1.00 s | at most 2 s | met |" in again
    assert "**missed**" not in again
    assert "it does too much" not in again
    assert again.index("## Things") < again.index("## Others")
    assert before[before.index("## Others") :] == again[again.index("## Others") :]


def test_a_new_section_comes_last_with_its_targets_and_a_first_one_makes_the_document() -> None:
    one = Section("Things", "How.", [within("cost", 1.0, 2.0, " s", "")])
    two = Section("More", "So.", [within("memory", 9.0, 2.0, " MB", "much")])
    assert updated("", [one, two], "Machine: one.") == document([one, two], "Machine: one.")
    assert updated(document([one], "Machine: one."), [two], "") == document([one, two], "Machine: one.")
