"""The training log: no gap and no repeat, and a line that was cut off is not a line."""

import json
from pathlib import Path

import pytest

from textgen.training.figures import LOG_FILE, TrainingLog, read_log


def lines(out: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (out / LOG_FILE).read_text().splitlines()]


def numbered(*steps: int) -> list[dict[str, float]]:
    return [{"step": step, "x": step / 8} for step in steps]


def added(out: Path, *steps: int) -> list[int]:
    """Open the log, add these steps, and return those that were handed on."""
    handed_on: list[int] = []

    def on_line(step: int, figures: dict[str, float]) -> None:
        assert figures == {"x": step / 8}
        handed_on.append(step)

    log = TrainingLog(out, on_line)
    for step in steps:
        log.add(step, {"x": step / 8})
    return handed_on


def test_a_log_is_a_json_line_a_step(tmp_path):
    assert read_log(tmp_path) == []
    assert added(tmp_path, 1, 2, 3) == [1, 2, 3]
    assert lines(tmp_path) == read_log(tmp_path) == numbered(1, 2, 3)
    assert read_log(tmp_path, 2) == numbered(3)


def test_a_line_is_in_the_file_before_it_is_handed_on(tmp_path):
    seen: list[list] = []
    TrainingLog(tmp_path, lambda step, figures: seen.append(lines(tmp_path))).add(1, {"x": 0.125})
    assert seen == [numbered(1)]


def test_steps_that_come_again_are_neither_written_nor_handed_on(tmp_path):
    added(tmp_path, 1, 2, 3, 4, 5)
    assert added(tmp_path, 3, 4) == []
    assert lines(tmp_path) == numbered(1, 2, 3, 4, 5)
    assert added(tmp_path, 4, 5, 6) == [6]
    assert lines(tmp_path) == numbered(1, 2, 3, 4, 5, 6)


def test_an_attempt_that_fails_earlier_than_the_one_before_does_not_lead_to_a_repeat(tmp_path):
    """The log was once cut back to the state, and what an earlier attempt had handed on was forgotten."""
    assert added(tmp_path, *range(1, 9)) == list(range(1, 9))
    assert added(tmp_path, 1, 2, 3, 4) == []
    assert added(tmp_path, *range(1, 11)) == [9, 10]


def test_a_coarser_log_goes_on_without_a_gap(tmp_path):
    """New lines were once told by their number, and with a larger log_every none came."""
    added(tmp_path, *range(1, 12))
    assert added(tmp_path, 12, 16, 20) == [12, 16, 20]


def test_a_validation_comes_after_its_step(tmp_path):
    handed_on: list[tuple[int, str]] = []
    for _ in range(2):
        log = TrainingLog(tmp_path, lambda step, figures: handed_on.append((step, *figures)))
        for step, name in [(0, "validation"), (1, "train"), (1, "validation"), (2, "train")]:
            log.add(step, {f"{name}/loss_nats": 1.0})
    assert handed_on == [
        (0, "validation/loss_nats"),
        (1, "train/loss_nats"),
        (1, "validation/loss_nats"),
        (2, "train/loss_nats"),
    ]


@pytest.mark.parametrize("cut", [1, 2, 5, 17])
def test_a_last_line_that_was_cut_off_is_written_again_and_handed_on(cut, tmp_path):
    added(tmp_path, 1, 2, 3)
    whole = (tmp_path / LOG_FILE).read_bytes()
    (tmp_path / LOG_FILE).write_bytes(whole[:-cut])
    is_whole = cut == 1  # all of it but its newline
    assert read_log(tmp_path) == numbered(1, 2, 3)[: 3 if is_whole else 2]
    assert added(tmp_path, 3, 4) == ([4] if is_whole else [3, 4])
    assert lines(tmp_path) == numbered(1, 2, 3, 4)


@pytest.mark.parametrize("damage", [b'{"step": \xff, "x": 0}', b'{"stop": 2, "x": 0.25}', b"2"])
def test_a_damaged_line_is_set_aside_with_its_log_and_costs_no_other(damage, tmp_path, caplog):
    added(tmp_path, 1, 2, 3)
    first, _, third = (tmp_path / LOG_FILE).read_bytes().splitlines()
    damaged = b"\n".join([first, damage, third, b""])
    (tmp_path / LOG_FILE).write_bytes(damaged)
    assert added(tmp_path, 4) == [4]
    assert lines(tmp_path) == numbered(1, 3, 4)
    assert (tmp_path / f"{LOG_FILE}.damaged-1").read_bytes() == damaged
    assert "log.jsonl has damaged lines; set aside" in caplog.text
