"""`LLM`: the scheduler and engine of the server, driven from one Python program instead of sockets.

from minisgl.llm import LLM, SamplingParams

with LLM("path/to/model") as llm:
    for completion in llm.generate(["Hello", "1 + 1 ="], SamplingParams(max_tokens=20)):
        print(completion.text)
"""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, Any, Literal

import msgspec
import torch
import zmq

from minisgl.core.batch import TokenScore
from minisgl.core.config import (
    Addresses,
    CacheType,
    Device,
    DType,
    EngineConfig,
    KVCacheDType,
    Quantization,
    SchedulerConfig,
    SchedulerProcessConfig,
    default_page_size,
)
from minisgl.core.sampling import SamplingParams
from minisgl.distributed import POLL_SECONDS
from minisgl.engine.engine import Engine
from minisgl.engine.shaping import MOST_BIASES
from minisgl.grammar.checker import GrammarChecker
from minisgl.grammar.pool import MatcherPool, load_compiler
from minisgl.llm.ranks import NOTICED_SECONDS, OtherRanks
from minisgl.message import (
    Abort,
    GrammarBuilt,
    MasksBuilt,
    NewRequest,
    Rejected,
    Round,
    SchedulerStats,
    TokenizeRequest,
)
from minisgl.models.checkpoint import inspect, resolve
from minisgl.scheduler.io import Broadcaster
from minisgl.scheduler.loop import normal_loop, overlap_loop
from minisgl.scheduler.scheduler import Scheduler
from minisgl.tokenizer.detokenizer import Detokenizer
from minisgl.tokenizer.prepare import prepare
from minisgl.tokenizer.text import TextTokenizer
from minisgl.utils.errors import UserError

if TYPE_CHECKING:
    from minisgl.grammar.compiler import Compiler

Prompt = str | list[int]
Message = dict[str, Any]


@dataclass(frozen=True)
class Completion:
    """What one prompt became."""

    prompt_token_ids: list[int]
    token_ids: list[int]
    """Every generated token, with the one that ended the request."""
    text: str
    """Without the token or string that ended it."""
    finish_reason: str
    """``"stop"`` or ``"length"``; ``"grammar"`` if `SamplingParams.grammar` took too much work to follow."""
    cached_tokens: int
    """Prompt tokens whose keys and values were in the prefix cache."""
    logprobs: list[TokenScore] | None
    """Of each of `token_ids`. None: not asked for."""
    prompt_logprobs: list[TokenScore] | None
    """Of each token of the prompt but the first. None: not asked for."""
    seconds: float
    """From the start of the batch that it was in to its last token."""


class LLM:
    """One model, loaded, with its KV cache. Not for use from several threads at once.

    Raises `minisgl.utils.errors.UserError` when the model or an option cannot be used, and `RankLostError` when
    another rank ends before all are ready.
    """

    def __init__(
        self,
        model: str,
        *,
        revision: str | None = None,
        device: Device | Literal["auto"] = "auto",
        dtype: DType | Literal["auto"] = "auto",
        quantization: Quantization = "none",
        kv_cache_dtype: KVCacheDType = "auto",
        tp_size: int = 1,
        attention: tuple[str, str] = ("auto", "auto"),
        cache: CacheType = "radix",
        page_size: int | None = None,
        num_pages: int | None = None,
        memory_ratio: float = 0.9,
        max_running_requests: int = 256,
        max_seq_len: int | None = None,
        prefill_budget: int = 2048,
        overlap: bool = True,
        cuda_graph_max_batch: int = 256,
        dummy_weight: bool = False,
        pynccl: bool = True,
    ) -> None:
        path = resolve(model, revision)
        config = inspect(path, skip_weights=dummy_weight)
        config.check_tensor_parallel(tp_size)
        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "cpu"
        if dtype == "auto":
            dtype = "float32" if device == "cpu" else config.dtype
        self._directory = tempfile.mkdtemp(prefix="minisgl-")
        addresses = Addresses(directory=self._directory)
        engine_config = EngineConfig(
            model_path=str(path),
            device=device,
            dtype=dtype,
            quantization=quantization,
            kv_cache_dtype=kv_cache_dtype,
            attention=attention,
            page_size=page_size or default_page_size(device),
            num_pages=num_pages,
            memory_ratio=memory_ratio,
            max_running_requests=max_running_requests,
            max_seq_len=max_seq_len,
            max_step_tokens=prefill_budget,
            cuda_graph_max_batch=cuda_graph_max_batch,
            dummy_weight=dummy_weight,
            pynccl=pynccl,
            tp_size=tp_size,
            rendezvous=f"{self._directory}/rendezvous" if tp_size > 1 else "",
        )
        scheduler_config = SchedulerConfig(cache=cache, prefill_budget=prefill_budget, overlap=overlap)
        self._ranks = OtherRanks(
            [
                SchedulerProcessConfig(
                    engine=msgspec.structs.replace(engine_config, tp_rank=rank),
                    scheduler=scheduler_config,
                    addresses=addresses,
                )
                for rank in range(1, tp_size)
            ]
        )
        self._context: zmq.Context[Any] = zmq.Context()
        self._broadcaster = Broadcaster(self._context, addresses, tp_size)
        try:
            self._engine = Engine(engine_config, config, self._ranks)
            chores = True
            while chores:  # or the first `generate` would do them before it returns
                while not self._broadcaster.ready():
                    self._ranks.check(POLL_SECONDS)
                self._broadcaster.send(Round(messages=[]), wait=False)  # the other ranks do theirs in such a round
                chores = self._engine.idle()
            self._ranks.check()
        except BaseException as error:
            try:
                if isinstance(error, Exception) and not isinstance(error, UserError):
                    self._ranks.check(NOTICED_SECONDS)
            finally:
                self._stop_ranks()
            raise
        self.limits = self._engine.limits
        self._checker = GrammarChecker(str(path))
        load = partial(load_compiler, str(path), self.limits.vocab_size, config.eos_ids)
        self._told = _Told(load)
        self._scheduler = Scheduler(scheduler_config, self.limits, config.eos_ids, self._told.matchers)
        self._loop = overlap_loop if overlap else normal_loop
        self._sampling = config.sampling
        self._tokenizer = TextTokenizer.load(str(path))
        self._next_uid = 0

    def generate(
        self,
        prompts: Prompt | Sequence[Prompt],
        params: SamplingParams | Sequence[SamplingParams] | None = None,
    ) -> list[Completion]:
        """Complete all prompts (texts, or lists of token ids) together; results in the order of the prompts.

        `params` is one for all or one for each; by default what the model recommends. Raises `ValueError` naming
        the prompt that cannot be served, and `RankLostError` when another rank has died.
        """
        single = isinstance(prompts, str) or (len(prompts) > 0 and isinstance(prompts[0], int))
        batch: list[Any] = [prompts] if single else list(prompts)
        return self._run([{"text": p} if isinstance(p, str) else {"token_ids": list(p)} for p in batch], params)

    def chat(
        self,
        conversations: Sequence[Message] | Sequence[Sequence[Message]],
        params: SamplingParams | Sequence[SamplingParams] | None = None,
    ) -> list[Completion]:
        """Answer a conversation, or each of several: lists of ``{"role": ..., "content": ...}``."""
        single = len(conversations) > 0 and isinstance(conversations[0], dict)
        batch: list[Any] = [conversations] if single else list(conversations)
        return self._run([{"messages": list(messages)} for messages in batch], params)

    def _run(
        self, prompts: list[dict[str, Any]], params: SamplingParams | Sequence[SamplingParams] | None
    ) -> list[Completion]:
        if params is None:
            params = self._sampling
        each = [params] * len(prompts) if isinstance(params, SamplingParams) else list(params)
        if len(each) != len(prompts):
            raise ValueError(f"{len(prompts)} prompts, but {len(each)} sampling parameters")
        requests = []
        for index, (prompt, one) in enumerate(zip(prompts, each, strict=True)):
            request = prepare(
                self._tokenizer,
                TokenizeRequest(
                    uid=self._next_uid + index,
                    params=one,
                    max_seq_len=self.limits.max_seq_len,
                    vocab_size=self.limits.vocab_size,
                    **prompt,
                ),
            )
            if isinstance(request, Rejected):
                raise ValueError(f"prompt {index}: {request.message}")
            self._check(index, one)
            if refusal := one.grammar and self._checker.check(one.grammar):
                raise ValueError(f"prompt {index}: grammar cannot be followed: {refusal}")
            # The whole prompt's log-probabilities are wanted; its text is not, see `_Endpoint.send`.
            shown = len(request.token_ids) if one.prompt_logprobs else 0
            requests.append(msgspec.structs.replace(request, shown=shown))
        self._next_uid += len(requests)
        endpoint = _Endpoint(requests, self._broadcaster, Detokenizer(self._tokenizer), self._told, self._ranks)
        try:
            self._loop(self._scheduler, self._engine, endpoint)
        except Exception:
            self._ranks.check(NOTICED_SECONDS)
            raise
        return [endpoint.completion(request) for request in requests]

    def _check(self, index: int, params: SamplingParams) -> None:
        """What the server checks before a request gets as far as `prepare`."""
        ids = [token for token, _ in params.logit_bias]
        if len(ids) > MOST_BIASES:
            raise ValueError(f"prompt {index}: logit_bias has {len(ids)} tokens; allowed: at most {MOST_BIASES}")
        if len(set(ids)) < len(ids):
            raise ValueError(f"prompt {index}: logit_bias names a token twice")
        wrong = next((token for token in ids if not 0 <= token < self.limits.vocab_size), None)
        if wrong is not None:
            raise ValueError(
                f"prompt {index}: logit_bias: token id {wrong} is outside the vocabulary: "
                f"ids are 0 to {self.limits.vocab_size - 1}"
            )
        if params.repetition_penalty <= 0:
            raise ValueError(f"prompt {index}: repetition_penalty {params.repetition_penalty:g}: must be above 0")
        if params.prompt_logprobs and params.logprobs is None:
            raise ValueError(f"prompt {index}: prompt_logprobs needs logprobs")

    @property
    def stats(self) -> SchedulerStats:
        """Counters and gauges of the scheduler."""
        return self._scheduler.stats

    def close(self) -> None:
        """Free the engine and end the other ranks."""
        self._ranks.expect_end()
        with suppress(zmq.Again):  # those that are left of them are killed
            self._broadcaster.send(Round(messages=[], stop=True), wait=False)
        self._engine.close()
        self._checker.close()
        self._stop_ranks()

    def _stop_ranks(self) -> None:
        self._ranks.stop()
        shutil.rmtree(self._directory, ignore_errors=True)
        self._context.destroy(linger=0)

    def __enter__(self) -> LLM:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class _Told:
    """What the threads that work for grammars have to say."""

    def __init__(self, load: Callable[[], Compiler]) -> None:
        self._queue: SimpleQueue[GrammarBuilt | MasksBuilt] = SimpleQueue()
        self._taken = 0
        self.matchers = MatcherPool(
            load,
            lambda uid: self._queue.put(GrammarBuilt(uid=uid)),
            lambda number: self._queue.put(MasksBuilt(number=number)),
        )

    def take(self, patience: float | None) -> list[GrammarBuilt | MasksBuilt]:
        """What they have said since the last call, or say within the next seconds; None: wait for what is to come,
        if anything is.
        """
        messages: list[GrammarBuilt | MasksBuilt] = []
        with suppress(Empty):
            if self._taken < self.matchers.promised:
                messages.append(self._queue.get(timeout=patience))
            while True:
                messages.append(self._queue.get_nowait())
        self._taken += len(messages)
        return messages


class _Endpoint:
    """Gives the loop one batch of requests, and says stop when the last has finished."""

    def __init__(
        self,
        requests: list[NewRequest],
        broadcaster: Broadcaster,
        detokenizer: Detokenizer,
        told: _Told,
        ranks: OtherRanks,
    ) -> None:
        self._arriving: list[NewRequest | Abort | GrammarBuilt | MasksBuilt] = list(requests)
        self._told = told
        self._broadcaster = broadcaster
        self._ranks = ranks
        self._detokenizer = detokenizer
        self._tokens: dict[int, list[int]] = {request.uid: [] for request in requests}
        self._texts: dict[int, list[str]] = {request.uid: [] for request in requests}
        self._reasons: dict[int, str] = {}
        self._begun = time.perf_counter()
        self._seconds: dict[int, float] = {}
        self._cached: dict[int, int] = {}
        self._scores: dict[int, list[TokenScore]] = {request.uid: [] for request in requests}
        self._prompt_scores: dict[int, list[TokenScore] | None] = {}

    def receive(self, *, block: bool, patience: float = 0.0) -> Round:
        self._arriving += self._told.take(None if block and not self._arriving else patience)
        if block and not self._arriving:
            return Round(messages=[], stop=True)  # not for the other ranks: they wait for the next call
        self._ranks.check()
        arrived = Round(messages=self._arriving)
        self._arriving = []
        self._broadcaster.send(arrived, wait=False)
        return arrived

    def send(self, scheduler: Scheduler) -> None:
        output = scheduler.take_output()
        if output is None:
            return
        scores = dict(zip(output.scored, output.scores, strict=True))
        for place, (uid, token) in enumerate(zip(output.uids, output.tokens, strict=True)):
            if uid not in self._reasons:
                self._tokens[uid].append(token)
                if place in scores:
                    self._scores[uid].append(scores[place])
        self._prompt_scores |= {opened.uid: opened.prompt_scores for opened in output.opened}
        unshown = [msgspec.structs.replace(opened, shown=[], prompt_scores=None) for opened in output.opened]
        output = msgspec.structs.replace(output, opened=unshown, scored=[], scores=[])
        text, stopped = self._detokenizer.feed(output)
        for uid, piece, cached, reason in zip(
            text.uids, text.texts, text.cached_tokens, text.finish_reasons, strict=True
        ):
            self._texts[uid].append(piece)
            self._cached[uid] = cached
            if reason:
                self._reasons[uid] = reason
                self._seconds[uid] = time.perf_counter() - self._begun
        self._arriving += [Abort(uid=uid) for uid in stopped]

    def completion(self, request: NewRequest) -> Completion:
        return Completion(
            prompt_token_ids=request.token_ids,
            token_ids=self._tokens[request.uid],
            text="".join(self._texts[request.uid]),
            finish_reason=self._reasons[request.uid],
            cached_tokens=self._cached[request.uid],
            logprobs=None if request.params.logprobs is None else self._scores[request.uid],
            prompt_logprobs=self._prompt_scores[request.uid],
            seconds=self._seconds[request.uid],
        )
