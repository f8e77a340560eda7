"""One rank's engine on tiny random models, driven by hand."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from minisgl.core.batch import Batch, Join, MaskWrite, PageWrite, PendingStep, PrefillChunk
from minisgl.core.config import EngineConfig
from minisgl.core.sampling import SamplingParams
from minisgl.engine.engine import Engine
from minisgl.models.config import ModelConfig
from minisgl.utils.errors import UserError
from support.greedy import greedy_references
from support.tiny_models import make_tiny_model

GREEDY = SamplingParams(temperature=0.0)

MakeEngine = Callable[..., Engine]


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_model("llama", tmp_path_factory.mktemp("llama"))


@pytest.fixture(scope="module")
def mistral(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_model("mistral", tmp_path_factory.mktemp("mistral"), sliding_window=12)


@pytest.fixture
def make_engine() -> Iterator[MakeEngine]:
    engines: list[Engine] = []

    def make(path: Path, **options: Any) -> Engine:
        options = {"num_pages": 400, "max_running_requests": 12, "page_size": 4} | options
        engines.append(Engine(EngineConfig(model_path=str(path), **options), ModelConfig.load(path)))
        return engines[-1]

    yield make
    for engine in engines:
        engine.close()


def prompts(*lengths: int) -> list[list[int]]:
    source = random.Random(0)
    return [[source.randrange(3, 512) for _ in range(length)] for length in lengths]


class Driver:
    """The least of a scheduler: pages in no order, rows as told, every token launched before the last is read."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.page_size = engine.limits.page_size
        self.free = list(range(engine.limits.num_pages))
        random.Random(1).shuffle(self.free)
        self.pages: dict[int, int] = {}
        self.lengths: dict[int, int] = {}
        self.tokens: dict[int, list[int]] = {}

    def join(self, batch: Batch, row: int, params: SamplingParams, generated: int = 0) -> None:
        batch.joined.append(Join(row, params, generated))
        self.pages[row] = 0
        self.tokens[row] = []

    def read(self, batch: Batch, row: int, tokens: list[int], start: int, *, sample: bool) -> None:
        """Append a chunk to `batch`."""
        self._grow(batch, row, start + len(tokens))
        batch.prefill.append(PrefillChunk(row, start, tokens, sample))

    def decode(self, batch: Batch, rows: list[int]) -> Batch:
        """Put `rows` into `batch`."""
        for row in rows:
            self._grow(batch, row, self.lengths[row] + 1)
        batch.decode_rows = rows
        batch.decode_lengths = [self.lengths[row] for row in rows]
        return batch

    def _grow(self, batch: Batch, row: int, length: int) -> None:
        self.lengths[row] = length
        wanted = -(-length // self.page_size) - self.pages[row]
        if wanted > 0:
            batch.pages.append(PageWrite(row, self.pages[row], [self.free.pop() for _ in range(wanted)]))
            self.pages[row] += wanted

    def take(self, batch: Batch, pending: PendingStep) -> None:
        rows = [*batch.decode_rows, *(chunk.row for chunk in batch.prefill if chunk.sample)]
        for row, token in zip(rows, pending.tokens(), strict=True):
            self.tokens[row].append(token)

    def run(self, batches: list[Batch]) -> None:
        launched = [(batch, self.engine.launch(batch)) for batch in batches]
        for batch, pending in launched:
            self.take(batch, pending)

    def generate(
        self,
        requests: dict[int, list[int]],
        count: int,
        params: SamplingParams | dict[int, SamplingParams] = GREEDY,
    ) -> dict[int, list[int]]:
        """All together: one prefill, then decodes of the same list of rows."""
        first = Batch()
        for row, prompt in requests.items():
            self.join(first, row, params if isinstance(params, SamplingParams) else params[row])
            self.read(first, row, prompt, 0, sample=True)
        rows = list(requests)
        self.run([first, *(self.decode(Batch(), rows) for _ in range(count - 1))])
        return {row: self.tokens[row] for row in rows}


@pytest.mark.parametrize("page_size", [1, 4, 16, 64])
@pytest.mark.parametrize("family", ["llama", "mistral"])
def test_greedy_tokens_are_those_of_transformers(
    family: str, page_size: int, make_engine: MakeEngine, request: pytest.FixtureRequest
) -> None:
    path: Path = request.getfixturevalue(family)
    requests = dict(zip((3, 0, 7, 4, 11), prompts(1, 37, 5, 64, 16), strict=True))
    tokens = Driver(make_engine(path, page_size=page_size)).generate(requests, 40)
    references = greedy_references(path, list(requests.values()), 40, ignore_eos=True)
    for row, expected in zip(requests, references, strict=True):
        assert len(expected.certain_tokens()) > 5
        assert expected.agrees(tokens[row])


def test_chunks_beside_decodes_give_the_same_tokens(llama: Path, make_engine: MakeEngine) -> None:
    short, long = prompts(6, 90)
    engine = make_engine(llama)
    expected = Driver(engine).generate({0: short, 1: long}, 20)
    driver = Driver(engine)
    first, batches = Batch(), []
    driver.join(first, 5, GREEDY)
    driver.read(first, 5, short, 0, sample=True)
    batches.append(first)
    for start, end in ((0, 1), (1, 30), (30, 32), (32, 89), (89, 90)):
        batch = driver.decode(Batch(), [5])
        if start == 0:
            driver.join(batch, 2, GREEDY)
        driver.read(batch, 2, long[start:end], start, sample=end == 90)
        batches.append(batch)
    batches += [driver.decode(Batch(), [5, 2]) for _ in range(14)]
    batches += [driver.decode(Batch(), [2]) for _ in range(5)]
    driver.run(batches)
    assert driver.tokens == {5: expected[0], 2: expected[1]}


def test_a_step_that_samples_nothing_returns_nothing(llama: Path, make_engine: MakeEngine) -> None:
    driver = Driver(make_engine(llama))
    batch = Batch()
    driver.join(batch, 0, GREEDY)
    driver.read(batch, 0, [5, 6, 7], 0, sample=False)
    assert driver.engine.launch(batch).tokens() == []


def test_a_seed_gives_the_same_tokens_alone_in_a_crowd_and_when_resumed(
    llama: Path, make_engine: MakeEngine
) -> None:
    params = SamplingParams(temperature=0.7, top_k=50, top_p=0.95, seed=1234)
    [prompt, *others] = prompts(20, 3, 40, 11)
    engine = make_engine(llama)
    alone = Driver(engine).generate({0: prompt}, 30, params)[0]
    assert len(set(alone)) > 10

    mates = {1: GREEDY, 2: SamplingParams(seed=7), 3: SamplingParams(temperature=0.5, min_p=0.1, seed=8)}
    requests = {row: others[row - 1] for row in mates} | {9: prompt}
    crowd = Driver(engine).generate(requests, 30, mates | {9: params})
    assert crowd[9] == alone
    assert Driver(engine).generate({0: prompt}, 30, SamplingParams(seed=1235))[0] != alone

    # Retracted after 12 tokens: it comes back with what it has, and goes on with the 13th draw.
    driver = Driver(engine)
    again = Batch()
    driver.join(again, 6, params, generated=12)
    driver.read(again, 6, prompt + alone[:12], 0, sample=True)
    driver.run([again, *(driver.decode(Batch(), [6]) for _ in range(17))])
    assert driver.tokens[6] == alone[12:]


def test_the_same_prefix_pages_serve_two_requests(llama: Path, make_engine: MakeEngine) -> None:
    """A request whose first pages are another's reads only the rest of its prompt."""
    [prompt, other] = prompts(50, 9)
    engine = make_engine(llama)
    expected = Driver(engine).generate({0: prompt + other}, 10)[0]
    driver = Driver(engine)
    first = Batch()
    driver.join(first, 0, GREEDY)
    driver.read(first, 0, prompt, 0, sample=False)
    driver.run([first])
    shared = first.pages[0].pages[:12]  # 48 tokens
    second = Batch()
    driver.join(second, 1, GREEDY)
    second.pages.append(PageWrite(1, 0, shared))
    driver.pages[1] = len(shared)
    driver.read(second, 1, (prompt + other)[48:], 48, sample=True)
    driver.run([second, *(driver.decode(Batch(), [1]) for _ in range(9))])
    assert driver.tokens[1] == expected


@pytest.mark.parametrize(
    "params",
    [
        GREEDY,
        SamplingParams(temperature=0.8, top_p=0.9, seed=3),
        SamplingParams(presence_penalty=0.5, logit_bias=((7, 1.0),), logprobs=2, seed=3),
    ],
)
def test_a_steady_decode_step_uploads_nothing(
    params: SamplingParams, llama: Path, make_engine: MakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    driver = Driver(make_engine(llama, page_size=64))
    driver.generate({row: [5] for row in range(8)}, 10, params)
    rows = list(range(8))
    driver.run([driver.decode(Batch(), rows)])
    made: list[Any] = []
    tensor = torch.tensor

    def count(data: Any, **options: Any) -> torch.Tensor:
        made.append(data)
        return tensor(data, **options)

    monkeypatch.setattr(torch, "tensor", count)
    driver.run([driver.decode(Batch(), rows) for _ in range(20)])
    assert made == []
    driver.run([driver.decode(Batch(), list(rows))])  # equal, though not the same list
    assert made == []
    driver.run([driver.decode(Batch(), rows[1:])])
    assert rows[1:] in [data[: len(rows) - 1] for data in made]  # filled up with the padding row


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_runs(dtype: str, llama: Path, make_engine: MakeEngine) -> None:
    tokens = Driver(make_engine(llama, dtype=dtype)).generate({0: prompts(10)[0], 1: [7]}, 5)
    assert all(len(row) == 5 and all(0 <= token < 512 for token in row) for row in tokens.values())


def test_limits_are_the_least_of_model_option_and_pool(llama: Path, make_engine: MakeEngine) -> None:
    limits = make_engine(llama).limits
    assert (limits.num_pages, limits.page_size, limits.max_seq_len) == (400, 4, 256)
    assert (limits.vocab_size, limits.max_running_requests) == (512, 12)
    assert make_engine(llama, max_seq_len=77).limits.max_seq_len == 77
    assert make_engine(llama, num_pages=9).limits.max_seq_len == 36
    automatic = make_engine(llama, num_pages=None)
    assert automatic.limits.num_pages == 12 * 256 // 4  # all that its requests could ever use
    assert set(automatic.phases) == {"distributed", "weights", "kv_pool", "attention", "warmup", "graphs"}
    assert all(seconds >= 0 for seconds in automatic.phases.values())


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"max_seq_len": 257}, "--max-seq-len 257: the model reads at most 256 tokens"),
        ({"max_seq_len": 1}, "--max-seq-len 1: holds no prompt"),
        (
            {"num_pages": 1, "page_size": 1},
            "--num-pages 1: a KV pool of so many pages of 1 tokens holds no prompt",
        ),
        ({"num_pages": 10**9}, "pages of the KV pool take"),
        (
            {"attention": ("torch", "fi")},
            "--attn fi: this backend is not available; allowed: auto, flashinfer",
        ),
    ],
)
def test_what_cannot_run_is_refused_in_one_line(
    options: dict[str, Any], words: str, llama: Path, make_engine: MakeEngine
) -> None:
    with pytest.raises(UserError, match=words) as refused:
        make_engine(llama, **options)
    assert "\n" not in str(refused.value)


def test_the_last_position_of_the_longest_request(llama: Path, make_engine: MakeEngine) -> None:
    """Prompt and output fill every slot of every page, to the model's last position."""
    [prompt] = prompts(250)
    driver = Driver(make_engine(llama, num_pages=64, page_size=4))
    tokens = driver.generate({0: prompt}, 7)[0]
    assert driver.lengths[0] == 256 and not driver.free
    [expected] = greedy_references(llama, [prompt], 6, ignore_eos=True)
    assert expected.agrees(tokens[:6])


def mask(row: int, allowed: set[int]) -> MaskWrite:
    return MaskWrite(row, sum(1 << token for token in allowed).to_bytes(512 // 8, "little"))


def test_masks_scores_and_prompt_scores_of_one_step(llama: Path, make_engine: MakeEngine) -> None:
    """Decodes and chunks together: scores are of the logits before the mask, in the order of the batch."""
    first, second, third = prompts(9, 30, 12)
    driver = Driver(make_engine(llama))
    scored = SamplingParams(temperature=0.0, logprobs=3)
    start = Batch()
    driver.join(start, 4, scored)
    driver.read(start, 4, first, 0, sample=True)
    driver.join(start, 1, SamplingParams(temperature=0.0, grammar="any"))
    driver.read(start, 1, third, 0, sample=True)
    allowed = {1: {5, 300}, 4: {9}, 7: {400, 511}}
    start.masks = [mask(1, allowed[1])]
    driver.run([start])
    assert driver.tokens[1][0] in allowed[1]

    batch = driver.decode(Batch(), [1, 4])
    driver.join(batch, 7, SamplingParams(seed=1, grammar="any", logprobs=0, prompt_logprobs=True))
    driver.read(batch, 7, second[:20], 0, sample=False)
    batch.prefill[0] = batch.prefill[0]._replace(targets=second[1:21])
    batch.masks = [mask(1, allowed[1])]
    pending = driver.engine.launch(batch)
    driver.take(batch, pending)
    assert driver.tokens[1][1] in allowed[1]
    scores = pending.scores()
    assert scores is not None and list(scores.sampled) == [1] and list(scores.prompt) == [0]
    score = scores.sampled[1]
    assert score.top_ids[0] == driver.tokens[4][1] and score.logprob == score.top_logprobs[0]
    assert len(scores.prompt[0]) == 20 and all(each.top_ids == [] for each in scores.prompt[0])

    last = driver.decode(Batch(), [4, 1])
    driver.read(last, 7, second[20:], 20, sample=True)
    last.prefill[0] = last.prefill[0]._replace(targets=second[21:])
    last.masks = [mask(7, allowed[7]), mask(1, allowed[1])]
    pending = driver.engine.launch(last)
    driver.take(last, pending)
    scores = pending.scores()
    assert scores is not None and list(scores.sampled) == [0, 2] and len(scores.prompt[0]) == 9
    assert driver.tokens[7][0] in allowed[7] and driver.tokens[1][2] in allowed[1]
    assert scores.sampled[2].logprob < -0.1, "a token that only the mask makes likely"
    assert driver.engine.launch(driver.decode(Batch(masks=[mask(1, allowed[1])]), [1])).tokens()
