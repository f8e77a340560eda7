"""The command line: what is accepted becomes configuration, what is not ends in one line and status 2."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest

from minisgl.attention.registry import BACKENDS
from minisgl.core.sampling import SamplingParams
from minisgl.server import args
from minisgl.server.args import Options, parse_arguments
from minisgl.server.dialect import Dialect
from minisgl.server.parser import ATTENTION_BACKENDS, build_parser
from minisgl.utils.errors import UserError

PLAIN = SamplingParams()


def parse(*arguments: str, **environ: str) -> Options:
    return parse_arguments(["--model", "some/model", "--device", "cpu", *arguments], environ)


def error_of(*arguments: str, **environ: str) -> str:
    with pytest.raises(UserError) as caught:
        parse(*arguments, **environ)
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_every_option_reaches_the_configuration() -> None:
    line = (
        "--revision v1 --served-model-name name --dtype float16 --dummy-weight --host ::1 --port 0 --api-key k"
        " --num-tokenizer 3 --max-queued-requests 5 --max-body-size 6 --drain-grace 0.5 --drain-timeout 8"
        " --log-level debug --log-format json --no-page --otlp-traces-endpoint http://c:4318/v1/traces"
        " --shell --tp 2 --disable-pynccl"
        " --attn torch,flashinfer --cache naive --page-size 4 --num-pages 100"
        " --quantization fp8 --kv-cache-dtype fp8"
        " --max-seq-len 99 --max-running-requests 7 --max-prefill-length 10 --cuda-graph-max-batch 6"
    )
    options = parse(*line.split(), MINISGL_DISABLE_OVERLAP_SCHEDULING="1", MINISGL_CHECK_RANKS="1")
    assert (options.model, options.revision) == ("some/model", "v1")
    worker = options.worker(Path("/path"), checkpoint_dtype="bfloat16", max_position=99, sampling=PLAIN)
    assert (worker.num_tokenizers, worker.log_level, worker.log_format, worker.shell) == (3, "debug", "json", True)
    engine, scheduler, server = worker.engine, worker.scheduler, worker.server
    assert (engine.model_path, engine.device, engine.dtype, engine.attention) == (
        "/path",
        "cpu",
        "float16",
        ("torch", "flashinfer"),
    )
    assert (engine.page_size, engine.num_pages, engine.max_running_requests, engine.max_seq_len) == (4, 100, 7, 99)
    assert (engine.quantization, engine.kv_cache_dtype) == ("fp8", "fp8")
    assert (engine.dummy_weight, engine.tp_size, engine.pynccl) == (True, 2, False)
    assert engine.cuda_graph_max_batch == 6
    assert (scheduler.cache, scheduler.prefill_budget) == ("naive", 10)
    assert (scheduler.overlap, scheduler.check_ranks, scheduler.record_steps) == (False, True, False)
    assert (server.page, server.otlp_traces_endpoint) == (False, "http://c:4318/v1/traces")
    assert (server.served_model_name, server.host, server.port, server.api_key) == ("name", "::1", 0, "k")
    assert (server.max_queued_requests, server.max_body_size) == (5, 6)
    assert (server.drain_grace, server.drain_timeout) == (0.5, 8.0)
    assert parse("--memory-ratio", "0.25").engine.memory_ratio == 0.25
    assert parse("--kernel-cache", "/kernels").kernel_cache == "/kernels"


def test_how_answers_are_read_depends_on_the_chat_template() -> None:
    def dialect(*arguments: str, template: str | None = "{{ tools }}<tool_call></think>") -> Dialect:
        worker = parse(*arguments).worker(
            Path("/p"), checkpoint_dtype="float32", max_position=9, sampling=PLAIN, chat_template=template
        )
        return worker.server.dialect

    assert dialect() == Dialect(tools="qwen", thinks=True)
    assert dialect(template=None) == Dialect()
    assert dialect("--tool-parser", "none", "--reasoning-parser", "none") == Dialect()
    assert dialect("--tool-parser", "llama3", "--reasoning-parser", "think", template="") == Dialect(
        tools="llama3", thinks=True
    )
    assert "--tool-parser" in error_of("--tool-parser", "hermes")
    assert "--reasoning-parser" in error_of("--reasoning-parser", "yes")


def test_the_option_for_the_kernel_cache_goes_before_the_variable() -> None:
    assert parse().kernel_cache is None
    assert parse(MINISGL_KERNEL_CACHE="").kernel_cache is None
    assert parse(MINISGL_KERNEL_CACHE="/v").kernel_cache == "/v"
    assert parse("--kernel-cache", "/o", MINISGL_KERNEL_CACHE="/v").kernel_cache == "/o"


def test_defaults() -> None:
    options = parse()
    assert (options.server.port, options.server.host, options.server.api_key) == (1919, "127.0.0.1", None)
    assert (options.log_level, options.scheduler.overlap, options.engine.memory_ratio) == ("info", True, 0.9)
    assert (options.log_format, options.server.otlp_traces_endpoint) == ("text", None)
    assert options.server.page and options.scheduler.record_steps
    shell = parse("--shell")
    assert (shell.server.port, shell.log_level) == (0, "warning")


@pytest.mark.parametrize(
    ("dtype", "device", "expected"),
    [
        ("auto", "cpu", "float32"),
        ("auto", "cuda", "bfloat16"),
        ("float16", "cuda", "float16"),
        ("float16", "cpu", "float16"),
    ],
)
def test_dtype_auto(monkeypatch: pytest.MonkeyPatch, dtype: str, device: str, expected: str) -> None:
    monkeypatch.setattr(args, "count_cuda_devices", lambda: 1)
    options = parse("--dtype", dtype, "--device", device)
    assert (
        options.worker(Path("/p"), checkpoint_dtype="bfloat16", max_position=10, sampling=PLAIN).engine.dtype
        == expected
    )


@pytest.mark.parametrize(
    ("devices", "torch_cuda", "expected"), [(0, True, "cpu"), (2, False, "cpu"), (2, True, "cuda")]
)
def test_device_auto(monkeypatch: pytest.MonkeyPatch, devices: int, torch_cuda: bool, expected: str) -> None:
    monkeypatch.setattr(args, "count_cuda_devices", lambda: devices)
    monkeypatch.setattr(args, "torch_has_cuda", lambda: torch_cuda)
    assert parse("--device", "auto").engine.device == expected


def test_missing_devices_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(args, "count_cuda_devices", lambda: 0)
    assert "no usable CUDA device" in error_of("--device", "cuda")
    monkeypatch.setattr(args, "count_cuda_devices", lambda: 2)
    assert error_of("--device", "cuda", "--tp", "4") == "--tp 4: this machine has 2 CUDA devices"


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("--port", "65536"),
        ("--port", "-1"),
        ("--port", "http"),
        ("--port", "1e3"),
        ("--host", ""),
        ("--api-key", ""),
        ("--served-model-name", ""),
        ("--revision", ""),
        ("--dtype", "int8"),
        ("--num-tokenizer", "0"),
        ("--max-queued-requests", "-1"),
        ("--max-body-size", "0"),
        ("--drain-grace", "-1"),
        ("--drain-timeout", "nan"),
        ("--drain-timeout", "inf"),
        ("--log-level", "loud"),
        ("--log-format", "yaml"),
        ("--otlp-traces-endpoint", "localhost:4318"),
        ("--otlp-traces-endpoint", "http://"),
        ("--device", "tpu"),
        ("--tp", "0"),
        ("--attn", "flash"),
        ("--attn", "torch,torch,torch"),
        ("--attn", ""),
        ("--cache", "lru"),
        ("--page-size", "0"),
        ("--page-size", "9999999999999999999"),
        ("--num-pages", "0"),
        ("--memory-ratio", "0"),
        ("--memory-ratio", "1.1"),
        ("--max-seq-len", "1"),
        ("--max-running-requests", "0"),
        ("--max-prefill-length", "0"),
    ],
)
def test_a_bad_value_is_named_with_its_option(option: str, value: str) -> None:
    message = error_of(option, value)
    assert option in message
    assert repr(value) in message or "empty" in message


@pytest.mark.parametrize(
    ("arguments", "environ", "expected"),
    [
        ("--num-pages 10 --memory-ratio 0.5", {}, "--num-pages and --memory-ratio both"),
        (
            "--num-pages 10 --page-size 16 --max-seq-len 161",
            {},
            "--max-seq-len 161 does not fit in --num-pages 10",
        ),
        ("--revision main --model .", {}, "--revision is for models on the Hub"),
        ("--api-key a", {"MINISGL_API_KEY": "b"}, "--api-key and MINISGL_API_KEY all give an API key"),
        ("--api-key a", {"MINISGL_API_KEY_FILE": "b"}, "--api-key and MINISGL_API_KEY_FILE all give"),
        ("", {"MINISGL_API_KEY": "a", "MINISGL_API_KEY_FILE": "b"}, "MINISGL_API_KEY and MINISGL_API_KEY_FILE"),
        ("", {"MINISGL_API_KEY_FILE": "/no/such/file"}, "MINISGL_API_KEY_FILE /no/such/file: No such file"),
        ("", {"MINISGL_API_KEY": ""}, "MINISGL_API_KEY: a key is"),
        ("", {"MINISGL_API_KEY": "a b"}, "MINISGL_API_KEY: a key is"),
        ("", {"MINISGL_DISABLE_OVERLAP_SCHEDULING": "yes"}, "must be 0 or 1"),
        ("", {"MINISGL_CHECK_RANKS": "yes"}, "MINISGL_CHECK_RANKS=yes: must be 0 or 1"),
        ("--por 1", {}, "unrecognized arguments: --por"),
        ("extra", {}, "unrecognized arguments: extra"),
    ],
)
def test_contradictions_are_refused(arguments: str, environ: dict[str, str], expected: str) -> None:
    assert expected in error_of(*arguments.split(), **environ)


def test_traces_need_their_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(args, "_has_exporter", lambda: False)
    message = error_of("--otlp-traces-endpoint", "http://c/v1/traces")
    assert message.startswith("--otlp-traces-endpoint needs OpenTelemetry: pip install opentelemetry-sdk")


def test_what_the_model_cannot_do_is_refused() -> None:
    with pytest.raises(UserError, match="--max-seq-len 101: some/model reads at most 100 tokens"):
        parse("--max-seq-len", "101").worker(
            Path("/p"), checkpoint_dtype="float32", max_position=100, sampling=PLAIN
        )


def test_the_key_file_is_read_without_its_line_end(tmp_path: Path) -> None:
    file = tmp_path / "key"
    file.write_text("sesame\n")
    assert parse(MINISGL_API_KEY_FILE=str(file)).server.api_key == "sesame"
    assert parse(MINISGL_API_KEY="sesame").server.api_key == "sesame"


def test_served_name_is_the_id_or_the_directory_name(tmp_path: Path) -> None:
    directory = tmp_path / "my-model"
    directory.mkdir()
    assert parse().server.served_model_name == "some/model"
    assert parse("--model", f"{directory}/").server.served_model_name == "my-model"


def test_every_option_is_documented_with_its_default() -> None:
    for action in build_parser()._actions:
        assert action.help
        assert "(default: " in action.help or action.nargs == 0 or action.required, action.option_strings


def test_the_known_attention_backends_are_the_engines() -> None:
    assert set(ATTENTION_BACKENDS) == {"auto", *BACKENDS}


@pytest.mark.parametrize(
    ("value", "names"),
    [("fa,fi", ("flash_attn", "flashinfer")), ("fa", ("flash_attn",) * 2), ("torch,fa", ("torch", "flash_attn"))],
)
def test_attention_backends_have_short_names(value: str, names: tuple[str, str]) -> None:
    assert parse("--attn", value).engine.attention == names


def test_a_model_must_be_named() -> None:
    with pytest.raises(UserError, match="arguments are required: --model"):
        parse_arguments([], {})


def test_help_is_quick_and_errors_are_one_line() -> None:
    seconds = []
    for _ in range(3):  # the best counts: other tests may run beside this one
        began = time.monotonic()
        shown = subprocess.check_output([sys.executable, "-m", "minisgl", "--help"], text=True)
        seconds.append(time.monotonic() - began)
        assert "engine:" in shown and "--max-prefill-length" in shown
    assert min(seconds) < 1, f"--help took {min(seconds):.2f} s"
    command = [sys.executable, "-m", "minisgl", "--port", "x"]
    wrong = subprocess.run(command, check=False, capture_output=True, text=True)
    assert (wrong.returncode, wrong.stdout) == (2, "")
    assert wrong.stderr == "minisgl: error: argument --port: must be a whole number from 0 to 65535, not 'x'\n"
