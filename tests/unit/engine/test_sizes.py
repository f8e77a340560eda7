"""As which size batches run: a contest between steps that are timed."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from minisgl.engine.rows import PRETENDED_STEPS, Rows
from minisgl.engine.sizes import REPLAYS, Contest


def play(
    weights: dict[int, float], padding: float, slowest: Callable[[list[float]], list[float]] = list
) -> tuple[dict[int, int], list[tuple[int, int]]]:
    """A model of which a step of a size takes so long, and each row in it that is padding so much longer."""
    contest, asked = Contest(sorted(weights), slowest), []
    while not contest.done:
        rows, size = contest.next
        asked.append((rows, size))
        contest.add(weights[size] + (padding * (size - rows) if rows else 0))
    return contest.winners, asked


@pytest.mark.parametrize(
    ("times", "padding", "winners"),
    [
        ({1: 5.0}, 0.0, {}),
        ({1: 1.0, 2: 2.0, 4: 3.0}, 0.0, {}),
        ({56: 5.0, 64: 5.5, 72: 4.8}, 0.0, {56: 72, 64: 72}),
        ({64: 5.0, 72: 4.8, 80: 4.7, 88: 6.0}, 0.0, {64: 80, 72: 80}),
        ({64: 5.0, 72: 4.8, 80: 4.7, 88: 6.0}, 0.015, {64: 72}),
        ({64: 5.0, 72: 4.8, 128: 4.6}, 0.01, {64: 72}),
        ({64: 5.0, 72: 4.99}, 0.0, {}),
        ({8: 5.0, 16: 4.97, 24: 4.94}, 0.0, {8: 24}),
    ],
    ids=[
        "one", "more take longer", "more take less", "the fastest of several", "padding counts", "the nearer one",
        "hardly less", "step by step",
    ],
)  # fmt: skip
def test_a_batch_runs_as_the_fastest_size_that_holds_it(
    times: dict[int, float], padding: float, winners: dict[int, int]
) -> None:
    assert play(times, padding)[0] == winners


def test_only_sizes_that_could_win_are_tried() -> None:
    times = {8: 1.0, 16: 3.0, 24: 2.6, 32: 2.7, 40: 2.5, 48: 2.4, 56: 4.0}
    _, asked = play(times, 0.0)
    assert asked[:7] == [(0, size) for size in times]
    assert asked[7:11] == [(16, 16), (16, 24), (16, 32), (16, 48)]
    assert {rows for rows, _ in asked[7:]} == {16, 24, 32, 40}


def test_ranks_choose_by_the_slowest() -> None:
    other = play({64: 5.0, 72: 4.0}, 0.0)
    assert other[0] == {64: 72}
    assert play({64: 5.0, 72: 4.0}, 0.0, lambda times: [5.0] * len(times))[0] == {}


def rows_of(*, page_size: int, max_pages: int, pages: int = 100) -> Rows:
    return Rows(
        num_rows=8, max_pages=max_pages, page_size=page_size, vocab_size=32, device=torch.device("cpu"),
        padding_page=pages,
    )  # fmt: skip


def test_rows_that_are_pretended_read_the_pool_and_write_to_the_padding_page() -> None:
    assert REPLAYS + 1 <= PRETENDED_STEPS
    rows = rows_of(page_size=64, max_pages=64)
    rows.pretend(3)
    assert rows.lengths.tolist() == [1024] * 3 + [0] * 6
    assert rows.block_table[:3, :16].tolist() == [list(range(16 * row, 16 * row + 16)) for row in range(3)]
    assert (rows.block_table[:3, 16:] == 100).all() and (rows.block_table[3:8] == 0).all()
    assert rows.decode_rows.tolist() == [0, 1, 2] + [8] * 6
    rows.pretend(8)
    assert int(rows.block_table[:8, :16].max()) < 100, "pages that there are"
    rows.pretend(0)
    assert rows.decode_rows.tolist() == [8] * 9


@pytest.mark.parametrize(("page_size", "max_pages"), [(1, 2), (1, 30), (16, 1), (64, 2)])
def test_rows_too_short_to_be_pretended_are_padding(page_size: int, max_pages: int) -> None:
    rows = rows_of(page_size=page_size, max_pages=max_pages)
    rows.pretend(4)
    assert rows.decode_rows.tolist() == [8] * 9
