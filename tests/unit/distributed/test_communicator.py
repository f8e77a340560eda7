"""What ranks agree on: sums and concatenations, bit for bit."""

from __future__ import annotations

import os

import numpy as np
import pytest
import torch
from torch.distributed import HashStore  # type: ignore[attr-defined]

from minisgl.distributed import Communicator, connect, nccl
from minisgl.utils.errors import UserError
from support.ranks import run_ranks


def _reduce_and_gather(comm: Communicator, dtype: torch.dtype) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    generator = torch.Generator().manual_seed(comm.rank)
    tensor = torch.randn(37, 129, generator=generator).to(dtype)
    gathered = comm.all_gather(tensor.clone(), dim=1)
    tensor_sum = comm.all_reduce(tensor.clone())
    return tensor.float().numpy(), tensor_sum.float().numpy(), gathered.float().numpy()


@pytest.mark.parametrize(("size", "dtype"), [(2, torch.bfloat16), (4, torch.float32)])
def test_ranks_hold_the_same_bits(size: int, dtype: torch.dtype) -> None:
    results = run_ranks(size, _reduce_and_gather, dtype)
    parts = [part for part, _, _ in results]
    tolerance = 0.1 if dtype == torch.bfloat16 else 1e-5
    for _, reduced, gathered in results:
        assert np.array_equal(reduced, results[0][1])
        assert np.allclose(reduced, sum(parts), atol=tolerance)
        assert np.array_equal(gathered, np.concatenate(parts, axis=1))


def _divide(comm: Communicator, rows: int) -> tuple[np.ndarray, np.ndarray, slice, np.ndarray]:
    generator = torch.Generator().manual_seed(comm.rank)
    columns = torch.randn(rows, 5, generator=generator)
    share = comm.share(rows)
    everyone = comm.collect(torch.arange(share.start, share.stop) * 10, rows)
    return columns.numpy(), np.asarray(everyone), share, comm.exchange(columns).numpy()


@pytest.mark.parametrize(("size", "rows"), [(2, 7), (3, 1), (3, 6), (4, 5)])
def test_ranks_divide_rows_among_them(size: int, rows: int) -> None:
    """Each gets its share of the rows whole, and hears of all what it is told of its own."""
    results = run_ranks(size, _divide, rows)
    whole = np.concatenate([columns for columns, *_ in results], axis=1)
    shares = [share for _, _, share, _ in results]
    assert [row for share in shares for row in range(share.start, share.stop)] == list(range(rows))
    for _, everyone, share, own in results:
        assert np.array_equal(own, whole[share])
        assert everyone.tolist() == [10 * row for row in range(rows)]


def _die_or_wait(comm: Communicator) -> None:
    comm.all_reduce(torch.ones(1))
    if comm.rank == 1:
        os._exit(1)
    with pytest.raises(RuntimeError):
        comm.all_reduce(torch.ones(1))


def test_a_dead_rank_is_noticed_at_once() -> None:
    with pytest.raises(RuntimeError, match="rank 1 died"):  # and rank 0 answered: it did not wait for ever
        run_ranks(2, _die_or_wait)


def _nothing(comm: Communicator) -> tuple[int, ...]:
    return tuple(comm.all_gather(comm.all_reduce(torch.ones(0, 3)), dim=1).shape)


def test_no_rows_are_no_problem() -> None:
    assert run_ranks(2, _nothing) == [(0, 6), (0, 6)]


def _leave_or_wait(comm: Communicator) -> None:
    comm.all_reduce(torch.ones(1))
    if comm.rank == 1:
        comm.close()
        comm.close()
    else:
        with pytest.raises(RuntimeError):
            comm.all_reduce(torch.ones(1))


def test_a_rank_that_leaves_is_noticed_at_once() -> None:
    run_ranks(2, _leave_or_wait)


def test_a_missing_library_is_told_in_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nccl, "LIBRARY", "libnosuch.so.2")
    nccl._library.cache_clear()
    with pytest.raises(UserError, match=r"libnosuch.so.2: .*; --disable-pynccl leaves it to torch"):
        nccl.Nccl(HashStore(), 0, 2)


def test_one_rank_sends_nothing(tmp_path: object) -> None:
    comm = connect(0, 1, f"{tmp_path}/rendezvous", torch.device("cpu"))
    tensor = torch.randn(3, 4)
    assert comm.all_reduce(tensor) is tensor
    assert comm.all_gather(tensor, dim=1) is tensor
    assert comm.exchange(tensor) is tensor and comm.share(3) == slice(0, 3)
    comm.close()
    assert not os.listdir(str(tmp_path))
