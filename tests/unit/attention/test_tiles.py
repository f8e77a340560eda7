"""How chunks are cut into tiles for the attention kernel."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from minisgl.attention.triton_backend import cut_tiles

chunk = st.tuples(st.integers(0, 5000), st.integers(1, 300))


@given(chunks=st.lists(chunk, max_size=40), most=st.integers(1, 64))
def test_every_token_is_in_one_tile_at_its_position(chunks: list[tuple[int, int]], most: int) -> None:
    spans = np.array([(row, *span) for row, span in enumerate(chunks)], dtype=np.int64).reshape(-1, 3)
    expected = [
        (row, position) for row, start, length in spans.tolist() for position in range(start, start + length)
    ]
    tiles = cut_tiles(spans.T, most).T.tolist()
    covered: list[tuple[int, int]] = []
    for row, first, tokens, position in tiles:
        assert first == len(covered) and 1 <= tokens <= most
        covered += [(row, position + i) for i in range(tokens)]
    assert covered == expected
    assert len(tiles) == sum(-(-length // most) for _, length in chunks)
