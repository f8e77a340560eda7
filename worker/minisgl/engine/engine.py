"""`Engine`: the executor of one rank."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor

from minisgl.attention.registry import Setting, choose_attention, create_attention
from minisgl.core.batch import Batch, Join, PageWrite, PendingStep, PrefillChunk
from minisgl.core.config import EngineConfig, EngineLimits
from minisgl.core.sampling import SamplingParams
from minisgl.distributed import Communicator, Messages, RankWatch, connect
from minisgl.engine.cuda_stream import CudaStream
from minisgl.engine.fp8 import check_fp8
from minisgl.engine.graphs import DecodeGraphs
from minisgl.engine.memory import count_pages, free_bytes
from minisgl.engine.parallel_start import quick_switches, wake_libraries
from minisgl.engine.prefill_graphs import PrefillGraphs, ReplayedStep
from minisgl.engine.rows import Rows, StepInput
from minisgl.engine.scores import SLICE, Scored, Scoring, StepResult, score
from minisgl.engine.stream import Stream
from minisgl.kvcache.pool import KVPool, page_bytes
from minisgl.models.config import ModelConfig
from minisgl.models.loader import begin_loading
from minisgl.utils.errors import UserError

logger = logging.getLogger("minisgl.engine")


class Engine:
    """Runs the steps of one rank: `minisgl.core.batch.Executor`. Ready when constructed."""

    @quick_switches()
    def __init__(self, config: EngineConfig, model: ModelConfig, watch: RankWatch | None = None) -> None:
        """Raises `UserError` for a model, an option or a machine with which it cannot run.

        `watch` knows when another rank is gone: launched steps end then, and what they give means nothing.
        """
        longest = config.max_seq_len or model.max_position
        if longest > model.max_position:
            raise UserError(f"--max-seq-len {longest}: the model reads at most {model.max_position} tokens")
        if longest < 2:
            raise UserError(f"--max-seq-len {longest}: holds no prompt and its answer; allowed: 2 or more")
        self.phases: dict[str, float] = {}
        """Seconds of each part of the start."""
        device = torch.device("cuda", config.tp_rank) if config.device == "cuda" else torch.device("cpu")
        dtype: torch.dtype = getattr(torch, config.dtype)
        group = model.num_heads // model.num_kv_heads
        check_fp8(config, model)
        rounds = config.kv_cache_dtype == "fp8"
        setting = Setting(device, dtype, config.page_size, model.head_dim, group, rounds)
        backends = choose_attention(config.attention, setting)
        if device.type == "cuda":
            torch.cuda.set_device(device)
        threads = config.num_threads or max(1, torch.get_num_threads() // config.tp_size)
        torch.set_num_threads(threads)
        free_before = free_bytes(device)
        waking = threading.Thread(target=wake_libraries, args=(device, dtype, model.hidden_size))
        if device.type == "cuda":
            waking.start()
        with self._phase("distributed"):
            width = -(-model.vocab_size // config.tp_size)
            self._comm = connect(
                config.tp_rank,
                config.tp_size,
                config.rendezvous,
                device,
                pynccl=config.pynccl,
                messages=Messages(
                    model.hidden_size, width, config.max_running_requests, dtype, config.max_step_tokens
                ),
                watch=watch,
            )
        with self._phase("weights"):
            self._model, filling = begin_loading(
                model,
                Path(config.model_path),
                self._comm,
                device=device,
                dtype=dtype,
                dummy=config.dummy_weight,
                quantization=config.quantization,
            )
        with filling:  # on a GPU, weights are read on while the rest is set up
            with self._phase("kv_pool"):
                pool = _create_pool(config, model, self._comm, device, dtype, longest, free_before)
            num_pages = pool.num_pages - 1
            self.limits = EngineLimits(
                num_pages=num_pages,
                page_size=pool.page_size,
                max_seq_len=min(longest, num_pages * pool.page_size),
                max_running_requests=config.max_running_requests,
                vocab_size=model.vocab_size,
            )
            self._rows = Rows(
                num_rows=config.max_running_requests,
                max_pages=-(-self.limits.max_seq_len // pool.page_size),
                page_size=pool.page_size,
                vocab_size=model.vocab_size,
                device=device,
                comm=self._comm,
                padding_page=num_pages,
            )
            with self._phase("attention"):
                self._attention = create_attention(
                    backends, pool, model.windows, model.num_heads // config.tp_size
                )
            self._stream = CudaStream(device) if device.type == "cuda" else Stream(threads)
            self._graphs: DecodeGraphs | None = None
            self._prefill_graphs: PrefillGraphs | None = None
            with self._phase("warmup"):
                if device.type == "cuda":
                    waking.join()
                self._warm_up()
            with self._phase("graphs"):
                self._capture(min(config.cuda_graph_max_batch, config.max_running_requests))
            with self._phase("weights"):
                filling.wait()

    def launch(self, batch: Batch) -> PendingStep:
        """Start a step and return at once."""
        return self._stream.launch(lambda: self._step(batch))

    def idle(self) -> bool:
        """Capture or time one more size of steps; False when none is left then. No request may be running."""
        every = [graphs for graphs in (self._graphs, self._prefill_graphs) if graphs is not None]
        graphs = next((graphs for graphs in every if graphs.has_chores), None)
        if graphs is not None:
            graphs.do_chore()
        return any(graphs.has_chores for graphs in every)

    def close(self) -> None:
        """Wait for the launched steps, and leave the other ranks."""
        self._stream.close()
        for graphs in (self._graphs, self._prefill_graphs):
            if graphs is not None:
                graphs.close()  # NCCL waits for those that call it
        self._comm.close()

    def _step(self, batch: Batch) -> StepResult:
        """One step, left on the device."""
        graphs, rows, decodes = self._graphs, self._rows, len(batch.decode_rows)
        if graphs is not None and not batch.prefill and decodes <= graphs.most:
            shaped = rows.shaping.any(batch.decode_rows)
            graphs.prepare(decodes, shaped=shaped)
            rows.update(batch)
            graphs.run(decodes)
            question = rows.question(batch.decode_rows)
            scoring = Scoring(question, self._whole(graphs.columns(decodes))) if question else None
            tokens = graphs.choose(decodes, rows.choice(batch.decode_rows), shaped=shaped)
            return StepResult(tokens, scoring.finish(tokens) if scoring else None)
        step, hidden = self._run(batch)
        prompt = self._score_prompts(batch, hidden)
        if step.sampled is not None:
            hidden = hidden.index_select(0, step.sampled)
        if not hidden.shape[0]:
            return StepResult(step.rows, prompt=prompt)
        columns = self._model.columns(hidden)
        question = rows.question(step.host_rows)
        scoring = Scoring(question, self._whole(columns)) if question else None
        tokens = rows.choose(columns, step.rows, step.host_rows)
        return StepResult(tokens, scoring.finish(tokens) if scoring else None, prompt)

    def _run(self, batch: Batch) -> tuple[StepInput | ReplayedStep, Tensor]:
        """Update the rows and run the model: for which of them to sample, and the step's hidden states."""
        graphs = self._prefill_graphs
        if graphs is not None and batch.prefill and batch.num_tokens <= graphs.most:
            graphs.prepare(batch.num_tokens)
            self._rows.update(batch)
            return graphs.replay(batch)
        self._rows.update(batch)
        step = self._rows.lay_out(batch)
        return step, self._model(step.tokens, step.positions, self._attention.plan(step.metadata))

    def _whole(self, columns: Tensor) -> Tensor:
        """This rank's part of some logits -> all of them [S, vocab]."""
        return self._comm.all_gather(columns, dim=1)[:, : self.limits.vocab_size]

    def _score_prompts(self, batch: Batch, hidden: Tensor) -> Scored | None:
        """Log-probabilities of the targets of chunks. hidden [batch.num_tokens or more, hidden]."""
        if not any(chunk.targets for chunk in batch.prefill):
            return None
        likely = [self._rows.scored.get(chunk.row, 0) if chunk.targets else 0 for chunk in batch.prefill]
        asked, parts, start = [], [], len(batch.decode_rows)
        for index, chunk in enumerate(batch.prefill):
            targets = self._rows.upload(chunk.targets)
            asked += [(index, likely[index])] * len(targets)
            states = torch.split(hidden[start : start + len(targets)], SLICE)
            for part, tokens in zip(states, torch.split(targets, SLICE), strict=True):
                parts.append(score(self._whole(self._model.columns(part)), tokens, max(likely)))
            start += len(chunk.tokens)
        return Scored.joined(asked, parts)

    def _capture(self, most: int) -> None:
        """Graphs of up to `most` decode rows, and of short steps with chunks; the log says why there are none."""
        if not isinstance(self._stream, CudaStream) or most < 1:
            return
        shared = self._model, self._rows, self._attention, self._stream.stream
        if self._attention.can_capture:
            self._graphs = DecodeGraphs(most, *shared)
        else:
            logger.info("no CUDA graphs: the attention backend for decode needs the host in every step")
        if self._attention.chunks is not None:
            self._prefill_graphs = PrefillGraphs(*shared)

    def _warm_up(self) -> None:
        """Prefills and a decode: what libraries set up at first use is set up now, and what fails fails now."""
        pages = list(range(-(-2 // self.limits.page_size)))
        prefill = Batch(
            joined=[Join(0, SamplingParams(temperature=0.0), 0)],
            pages=[PageWrite(0, 0, pages)],
            prefill=[PrefillChunk(0, 0, [0], sample=True)],
        )
        decode = Batch(decode_rows=[0], decode_lengths=[2])
        # To continue a row may be another kernel than to begin one.
        more = Batch(prefill=[PrefillChunk(0, 1, [0], sample=True)])
        with self._model.shortened():
            for batch in (prefill, decode, more):
                self.launch(batch).tokens()

    @contextmanager
    def _phase(self, name: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self.phases[name] = self.phases.get(name, 0.0) + time.perf_counter() - start


def _create_pool(
    config: EngineConfig,
    model: ModelConfig,
    comm: Communicator,
    device: torch.device,
    dtype: torch.dtype,
    max_seq_len: int,
    free_before: int,
) -> KVPool:
    """This rank's pool, of as many pages as the rank with the least memory can hold, and one of padding."""
    stored = torch.float8_e4m3fn if config.kv_cache_dtype == "fp8" else dtype
    kv_heads = max(1, model.num_kv_heads // config.tp_size)
    size = page_bytes(model.num_layers, config.page_size, kv_heads, model.head_dim, stored)
    own = count_pages(config, device, page_bytes=size, max_seq_len=max_seq_len, free_before=free_before)
    num_pages = int(comm.all_gather(torch.tensor([own], device=device)).min())
    if num_pages * config.page_size < 2:
        raise UserError(
            f"--num-pages {num_pages}: a KV pool of so many pages of {config.page_size} tokens holds no prompt "
            "and its answer; allowed: 2 tokens or more"
        )
    return KVPool(
        num_layers=model.num_layers,
        num_pages=num_pages + 1,
        page_size=config.page_size,
        kv_heads=kv_heads,
        head_dim=model.head_dim,
        dtype=dtype,
        device=device,
        stored=stored,
    )
