"""Paged attention against attention written out token by token, in float64."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from minisgl.attention import registry
from minisgl.attention.base import Attend, Chunk, StepMetadata, Target
from minisgl.attention.registry import Setting, choose_attention, create_attention
from minisgl.kvcache.pool import KVPool
from minisgl.utils.errors import UserError

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
HEAD_DIM = 16
TOLERANCE = 2e-5


@dataclass(frozen=True)
class Work:
    """What one row does in the step: reads tokens ``start .. start + length - 1``; a decode reads one."""

    row: int
    start: int
    length: int = 1
    decode: bool = False


class Scene:
    """Rows whose tokens so far are in a pool full of rubbish, on pages in no order, and dense as well."""

    def __init__(
        self,
        lengths: list[int],
        *,
        page_size: int = 4,
        heads: int = 4,
        kv_heads: int = 2,
        windows: tuple[int | None, ...] = (None,),
        seed: int = 0,
        stored: torch.dtype = torch.float32,
    ) -> None:
        """`lengths`: of each row when the last step has run. `stored`: what the pool rounds keys and values to."""
        generator = torch.Generator().manual_seed(seed)

        def normal(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=generator)

        counts = [-(-length // page_size) for length in lengths]
        self.pool = KVPool(
            num_layers=len(windows),
            num_pages=sum(counts) + 3,
            page_size=page_size,
            kv_heads=kv_heads,
            head_dim=HEAD_DIM,
            dtype=torch.float32,
            device=CPU,
            stored=stored,
        )
        for layer in self.pool.layers:
            layer.copy_(50 * normal(*layer.shape))
        numbers = torch.randperm(self.pool.num_pages, generator=generator).tolist()
        self.block_table = torch.randint(0, self.pool.num_pages, (len(lengths), max(counts)), generator=generator)
        self.block_table = self.block_table.int()
        for row, count in enumerate(counts):
            self.block_table[row, :count] = torch.tensor(numbers[:count])
            del numbers[:count]
        self.windows = windows
        self.query = [[normal(length, heads, HEAD_DIM) for length in lengths] for _ in windows]
        self.key = [[normal(length, kv_heads, HEAD_DIM) for length in lengths] for _ in windows]
        self.value = [[normal(length, kv_heads, HEAD_DIM) for length in lengths] for _ in windows]
        self.attention = create_attention(("torch", "torch"), self.pool, windows, heads)

    def slots(self, row: int, start: int, length: int) -> Tensor:
        positions = torch.arange(start, start + length)
        size = self.pool.page_size
        return self.block_table[row, positions // size].long() * size + positions % size

    def fill(self, row: int, length: int) -> None:
        """Put the first `length` tokens of `row` into the pool."""
        for layer in range(len(self.windows)):
            slots = self.slots(row, 0, length)
            target = Target(self.pool.slots[layer], slots)
            target.store(self.key[layer][row][:length], self.value[layer][row][:length])

    def plan(self, works: list[Work], decode_rows: Tensor | None = None) -> Attend:
        decodes = [work for work in works if work.decode]
        if decode_rows is None:
            decode_rows = torch.tensor([work.row for work in decodes], dtype=torch.int64)
        return self.attention.plan(
            StepMetadata(
                slots=torch.cat([self.slots(work.row, work.start, work.length) for work in works]),
                block_table=self.block_table,
                decode_rows=decode_rows,
                decode_lengths=torch.tensor([work.start + 1 for work in decodes], dtype=torch.int64),
                host_lengths=[work.start + 1 for work in decodes],
                chunks=[Chunk(work.row, work.start, work.length) for work in works if not work.decode],
            )
        )

    def step(self, works: list[Work], layer: int = 0, attend: Attend | None = None) -> Tensor:
        """[T, heads, head_dim] of the tokens of `works`, decodes first."""

        def of(tensors: list[Tensor]) -> Tensor:
            return torch.cat([tensors[work.row][work.start : work.start + work.length] for work in works])

        attend = attend or self.plan(works)
        key, value = of(self.key[layer]), of(self.value[layer])
        attend.target(layer).store(key, value)
        return attend(layer, of(self.query[layer]), key, value)

    def expected(self, works: list[Work], layer: int = 0) -> Tensor:
        window = self.windows[layer]
        results = []
        for work in works:
            query, key, value = (x[layer][work.row].double() for x in (self.query, self.key, self.value))
            if self.pool.rounds:
                key, value = (x.clamp(-448, 448).to(torch.float8_e4m3fn).double() for x in (key, value))
            group = query.shape[1] // key.shape[1]
            key, value = key.repeat_interleave(group, dim=1), value.repeat_interleave(group, dim=1)
            positions = torch.arange(work.start, work.start + work.length).unsqueeze(1)
            distance = positions - torch.arange(len(key))
            hidden = (distance < 0) | (distance >= (window or len(key)))
            scores = torch.einsum("thd,shd->ths", query[work.start :][: work.length], key) * HEAD_DIM**-0.5
            shares = scores.masked_fill(hidden.unsqueeze(1), -torch.inf).softmax(-1)
            results.append(torch.einsum("ths,shd->thd", shares, value))
        return torch.cat(results).float()


def decode(row: int, length: int) -> Work:
    """A row of `length` tokens reads its last one."""
    return Work(row, length - 1, decode=True)


@pytest.mark.parametrize("page_size", [1, 4, 16, 64])
@pytest.mark.parametrize(("heads", "kv_heads"), [(4, 4), (6, 2), (5, 1)])
def test_decode_reads_every_row_to_its_own_end(page_size: int, heads: int, kv_heads: int) -> None:
    lengths = [1, 70, 4, 17, 64, 65, 33]
    scene = Scene(lengths, page_size=page_size, heads=heads, kv_heads=kv_heads)
    for row, length in enumerate(lengths):
        scene.fill(row, length - 1)
    works = [decode(row, lengths[row]) for row in (3, 0, 6, 1, 5, 2, 4)]
    torch.testing.assert_close(scene.step(works), scene.expected(works), atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize("page_size", [1, 4, 16, 64])
@pytest.mark.parametrize("window", [1, 5, 16, 40])
def test_windows_hide_what_is_too_far_back(page_size: int, window: int) -> None:
    lengths = [1, 90, 6, 41, 17, 64, 65]
    scene = Scene(lengths, page_size=page_size, windows=(None, window))
    for row, length in enumerate(lengths):
        scene.fill(row, length - 1)
    works = [decode(row, length) for row, length in enumerate(lengths)]
    for layer in (0, 1):
        torch.testing.assert_close(scene.step(works, layer), scene.expected(works, layer), atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize("page_size", [1, 4, 16, 64])
@pytest.mark.parametrize("window", [None, 7, 300])
@pytest.mark.parametrize("start", [0, 3, 64])
def test_prefill_is_causal(page_size: int, window: int | None, start: int) -> None:
    length = 530  # more than two blocks of queries
    scene = Scene([start + length], page_size=page_size, windows=(window,))
    scene.fill(0, start)
    works = [Work(0, start, length)]
    torch.testing.assert_close(scene.step(works), scene.expected(works), atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize("window", [None, 9])
def test_decodes_and_chunks_in_one_step(window: int | None) -> None:
    lengths = [33, 20, 50, 8, 1]
    scene = Scene(lengths, windows=(window,), heads=6)
    for row, filled in enumerate((32, 0, 31, 7, 0)):
        scene.fill(row, filled)
    works = [decode(3, 8), decode(0, 33), Work(1, 0, 20), Work(2, 31, 19), Work(4, 0, 1)]
    torch.testing.assert_close(scene.step(works), scene.expected(works), atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize("window", [None, 21])
@pytest.mark.parametrize("page_size", [1, 16])
def test_chunks_give_what_the_whole_prompt_gives(window: int | None, page_size: int) -> None:
    whole, chunked = (Scene([300], page_size=page_size, windows=(window,)) for _ in range(2))
    expected = whole.step([Work(0, 0, 300)])
    bounds = [0, 1, 15, 16, 100, 299, 300]
    parts = [chunked.step([Work(0, start, end - start)]) for start, end in pairwise(bounds)]
    torch.testing.assert_close(torch.cat(parts), expected, atol=TOLERANCE, rtol=0)
    slots = whole.slots(0, 0, 300)
    assert torch.equal(whole.pool.layers[0].flatten(0, 1)[slots], chunked.pool.layers[0].flatten(0, 1)[slots])


@pytest.mark.parametrize("window", [None, 9])
def test_every_token_reads_what_the_pool_has_rounded(window: int | None) -> None:
    lengths = [33, 20, 50, 8, 1]
    scene = Scene(lengths, windows=(window,), stored=torch.float8_e4m3fn)
    scene.value[0][1][:5] = 1e4  # more than FP8 can hold
    for row, filled in enumerate((32, 0, 31, 7, 0)):
        scene.fill(row, filled)
    works = [decode(3, 8), decode(0, 33), Work(1, 0, 20), Work(2, 31, 19), Work(4, 0, 1)]
    torch.testing.assert_close(scene.step(works), scene.expected(works), atol=TOLERANCE, rtol=1e-5)


def test_a_step_writes_its_own_slots_and_no_other() -> None:
    scene = Scene([9, 5], page_size=4)
    before = scene.pool.layers[0].flatten(0, 1).clone()
    works = [decode(0, 9), Work(1, 0, 5)]
    scene.step(works)
    after = scene.pool.layers[0].flatten(0, 1)
    written = torch.cat((scene.slots(0, 8, 1), scene.slots(1, 0, 5)))
    changed = (after != before).flatten(1).any(dim=1).nonzero().flatten()
    assert sorted(changed.tolist()) == sorted(written.tolist())
    assert torch.equal(after[written, 1], torch.cat((scene.value[0][0][8:9], scene.value[0][1])))


def test_batch_mates_do_not_matter() -> None:
    # Enough tokens that the rows are attended to in several groups of differing lengths.
    lengths = [1500, 3, 700, 1499, 40, 900, 1200, 2, 1501, 64, 800]
    scene = Scene(lengths, page_size=16, heads=4, kv_heads=4)
    for row, length in enumerate(lengths):
        scene.fill(row, length - 1)
    works = [decode(row, length) for row, length in enumerate(lengths)]
    together = scene.step(works)
    alone = torch.cat([scene.step([work]) for work in works])
    torch.testing.assert_close(together, alone, atol=TOLERANCE, rtol=0)


def test_groups_follow_the_rows_as_they_grow_and_change() -> None:
    """The grouping is kept from step to step; growth, and a row that begins anew, must not be missed."""
    ends = [400, 130, 260, 90]
    scene = Scene(ends, page_size=4)
    rows = torch.tensor([2, 0, 1, 3])
    lengths = dict(zip(rows.tolist(), (1, 300, 2, 88), strict=True))
    for row, length in lengths.items():
        scene.fill(row, length - 1)
    for number in range(100):
        works = [decode(row, length) for row, length in lengths.items()]
        result = scene.step(works, attend=scene.plan(works, rows))
        torch.testing.assert_close(result, scene.expected(works), atol=TOLERANCE, rtol=0)
        for row, end in enumerate(ends):
            lengths[row] = lengths[row] + 1 if lengths[row] < end else 1
        if number == 50:
            lengths[2] = 255
            scene.fill(2, 254)


@pytest.mark.parametrize("names", [("torch", "fast"), ("fast", "torch")])
def test_an_unknown_backend_is_refused_by_name(names: tuple[str, str]) -> None:
    with pytest.raises(
        UserError,
        match="--attn fast: this backend is not available; allowed: auto, flashinfer, flash_attn, triton, torch",
    ):
        choose_attention(names, SETTING)


SETTING = Setting(CPU, torch.bfloat16, page_size=16, head_dim=64, query_heads=4)


def test_a_cpu_gets_torch_unasked() -> None:
    assert choose_attention(("auto", "auto"), SETTING) == ("torch", "torch")
    assert choose_attention(("auto", "torch"), SETTING) == ("torch", "torch")


@pytest.mark.parametrize(
    ("setting", "installed", "words", "instead"),
    [
        (SETTING, True, "it needs a CUDA device", "torch"),
        (SETTING._replace(device=CUDA), False, "the package flashinfer-python is not installed", "torch"),
        (
            SETTING._replace(device=CUDA, dtype=torch.float32),
            True,
            "needs float16 or bfloat16, not float32",
            "torch",
        ),
        (SETTING._replace(device=CUDA, head_dim=80), True, "heads of 64, 128 or 256 dimensions, not 80", "torch"),
        (SETTING._replace(device=CUDA, page_size=8), True, "needs --page-size 16, 32, 64 or 128, not 8", "triton"),
    ],
)
def test_flashinfer_is_refused_in_one_line_where_it_cannot_run(
    setting: Setting, installed: bool, words: str, instead: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(registry, "find_spec", lambda _: object() if installed else None)
    monkeypatch.setattr(registry, "distributions", lambda name: [])  # noqa: ARG005
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (9, 0))
    with pytest.raises(UserError, match=f"^--attn flashinfer: cannot be used for .*{words}; --attn torch works$"):
        choose_attention(("flashinfer", "flashinfer"), setting)
    assert choose_attention(("torch", "auto"), setting) == ("torch", instead)


@pytest.mark.parametrize(
    ("setting", "installed", "capability", "words"),
    [
        (SETTING, True, 9, "it needs a CUDA device"),
        (
            SETTING._replace(device=CUDA),
            False,
            9,
            "the package flash-attn-4 is not installed \\(pip install .*\\)",
        ),
        (SETTING._replace(device=CUDA), True, 8, "it needs a GPU of the Hopper generation"),
        (SETTING._replace(device=CUDA, dtype=torch.float32), True, 9, "it needs float16 or bfloat16, not float32"),
        (SETTING._replace(device=CUDA, rounds=True), True, 9, "it does not read --kv-cache-dtype fp8"),
        (SETTING._replace(device=CUDA, head_dim=80), True, 9, "it needs heads of 64 or 128 dimensions, not 80"),
    ],
)
def test_flash_attn_is_refused_in_one_line_where_it_cannot_run(
    setting: Setting, installed: bool, capability: int, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(registry, "distributions", lambda name: [name] if installed else [])
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (capability, 0))
    for phase, names in (("prefill", ("flash_attn", "torch")), ("decode", ("torch", "flash_attn"))):
        message = f"^--attn flash_attn: cannot be used for {phase}: {words}; --attn torch works$"
        with pytest.raises(UserError, match=message):
            choose_attention(names, setting)
    works = SETTING._replace(device=CUDA, page_size=1)
    if installed and capability == 9:
        assert choose_attention(("flash_attn", "flash_attn"), works) == ("flash_attn", "flash_attn")


def test_flashinfer_without_kernels_and_without_a_compiler_is_not_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    installed = {"flashinfer"}
    monkeypatch.setattr(registry, "find_spec", lambda name: name if name in installed else None)
    monkeypatch.setattr(registry, "distributions", lambda name: [name] if name in installed else [])
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (9, 0))
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.setenv("CUDA_HOME", "/nowhere")
    setting = SETTING._replace(device=CUDA)
    assert choose_attention(("auto", "auto"), setting) == ("torch", "torch")
    with pytest.raises(UserError, match="no nvcc to build them"):
        choose_attention(("flashinfer", "torch"), setting)
    installed.add("triton")
    assert choose_attention(("auto", "auto"), setting) == ("triton", "triton")
    with pytest.raises(
        UserError, match="--attn triton: cannot be used for prefill: it needs heads of 64, 128 or 256"
    ):
        choose_attention(("triton", "auto"), setting._replace(head_dim=80))
    installed.add("flash-attn-4")
    assert choose_attention(("auto", "auto"), setting) == ("flash_attn", "triton")
    installed.add("flashinfer_jit_cache")
    assert choose_attention(("auto", "auto"), setting) == ("flashinfer", "triton")
    assert choose_attention(("auto", "flashinfer"), setting) == ("flashinfer", "flashinfer")
    five = setting._replace(query_heads=5)  # as Qwen3-14B's: the package has no decode kernel for it
    with pytest.raises(UserError, match="its decode kernel for 5 query heads a key-value head is not built"):
        choose_attention(("auto", "flashinfer"), five)
    assert choose_attention(("auto", "auto"), setting._replace(page_size=1)) == ("flashinfer", "triton")
