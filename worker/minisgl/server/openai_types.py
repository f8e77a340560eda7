"""The bodies that clients send. Whatever is not declared here, or not served, is refused by its name."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from minisgl.core.sampling import SamplingParams
from minisgl.grammar import tool_calls
from minisgl.server.answer_parser import AnswerParser
from minisgl.server.dialect import Dialect
from minisgl.server.errors import invalid
from minisgl.server.frontend import Prompt
from minisgl.server.neutral import BOTH, CHAT, COMPLETION, Neutral
from minisgl.server.openai_messages import Message
from minisgl.server.openai_tools import ChosenTool, Tool, ToolChoice, Tools
from minisgl.server.reasoning import ThoughtParser
from minisgl.server.response_format import ResponseFormat
from minisgl.server.strict import (
    FAIL_FAST,
    INT32_MAX,
    MAX_STOPS,
    JsonObject,
    LogitBias,
    PromptForms,
    StopStrings,
    Strict,
    TokenId,
)
from minisgl.server.tool_calls import ToolCallParser

GREEDY_BELOW = 1e-5
"""A temperature under this is greedy: dividing float32 logits by it would overflow."""
COMPLETION_MAX_TOKENS = 16
MAX_CHOICES = 128
MAX_LOGPROBS = 20
RESERVED = ("messages", "tools", "add_generation_prompt", "raise_exception", "strftime_now")
"""What `chat_template_kwargs` may not change."""

Penalty = Annotated[float, Field(ge=-2, le=2)]
Logprobs = Annotated[int, Field(ge=0, le=MAX_LOGPROBS)]


def check_template_variables(variables: dict[str, Any] | None, *others: str) -> None:
    """Raises `ApiError` when `variables` of a chat template would take the place of what else it is told."""
    for name in variables or ():
        if name in RESERVED or name in others:
            raise invalid(f"chat_template_kwargs: {name} cannot be set here", param="chat_template_kwargs")


class StreamOptions(Strict):
    NEUTRAL: ClassVar[Neutral] = {"include_obfuscation": (False,), "continuous_usage_stats": (False,)}
    include_usage: bool | None = None


class GenerateRequest(Strict):
    """What both endpoints understand. A null is as good as leaving the field out."""

    NEUTRAL: ClassVar[Neutral] = BOTH
    model: str
    max_tokens: Annotated[int, Field(ge=1, le=INT32_MAX)] | None = None
    n: Annotated[int, Field(ge=1, le=MAX_CHOICES)] | None = Field(
        default=None, description="Answers to each prompt."
    )
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    top_k: Annotated[int, Field(ge=-1, le=INT32_MAX)] | None = Field(
        default=None, description="-1 or 0: every token."
    )
    min_p: Annotated[float, Field(ge=0, le=1)] | None = None
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None
    repetition_penalty: Annotated[float, Field(gt=0, le=2)] | None = None
    logit_bias: LogitBias | None = Field(default=None, description="Token ids to numbers from -100 to 100.")
    seed: Annotated[int, Field(ge=-(2**63), le=2**63 - 1)] | None = None
    stop: StopStrings = Field(default=None, description="A string, or several.")
    stop_token_ids: Annotated[list[TokenId], Field(max_length=MAX_STOPS), FAIL_FAST] | None = None
    ignore_eos: bool | None = None
    response_format: ResponseFormat | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    user: Annotated[str, Field(max_length=512)] | None = Field(default=None, description="Shown in the log.")

    @model_validator(mode="after")
    def _options_need_a_stream(self) -> Self:
        if self.stream_options is not None and not self.stream:
            raise invalid("stream_options is only allowed with stream: true", param="stream_options")
        return self

    @property
    def include_usage(self) -> bool:
        return self.stream_options is not None and bool(self.stream_options.include_usage)

    @property
    def copies(self) -> int:
        """Answers to each prompt."""
        return self.n or 1

    def sampling(self, defaults: SamplingParams, **fields: Any) -> SamplingParams:
        """What both endpoints ask of sampling, and `fields`. `defaults` are the model's."""
        temperature = defaults.temperature if self.temperature is None else self.temperature
        repetition = self.repetition_penalty
        return SamplingParams(
            temperature=0.0 if temperature < GREEDY_BELOW else temperature,
            top_k=defaults.top_k if self.top_k is None else max(self.top_k, 0),
            top_p=defaults.top_p if self.top_p is None else self.top_p,
            min_p=defaults.min_p if self.min_p is None else self.min_p,
            presence_penalty=self.presence_penalty or 0.0,
            frequency_penalty=self.frequency_penalty or 0.0,
            repetition_penalty=defaults.repetition_penalty if repetition is None else repetition,
            logit_bias=tuple((int(token), float(bias)) for token, bias in (self.logit_bias or {}).items()),
            seed=None if self.seed is None else self.seed & (2**63 - 1),
            stop=tuple(self.stop or ()),
            stop_token_ids=tuple(self.stop_token_ids or ()),
            ignore_eos=bool(self.ignore_eos),
            **fields,
        )


class ChatRequest(GenerateRequest):
    """``POST /v1/chat/completions``."""

    NEUTRAL: ClassVar[Neutral] = BOTH | CHAT
    messages: Annotated[list[Message], Field(min_length=1), FAIL_FAST]
    max_completion_tokens: Annotated[int, Field(ge=1, le=INT32_MAX)] | None = None
    logprobs: bool | None = None
    top_logprobs: Logprobs | None = None
    tools: Tools | None = None
    tool_choice: ToolChoice | None = None
    parallel_tool_calls: bool | None = None
    reasoning_effort: Literal["none", "minimal", "low", "medium", "high", "xhigh"] | None = Field(
        default=None, description="For chat templates that know it."
    )
    chat_template_kwargs: JsonObject | None = Field(default=None, description="Variables of the chat template.")

    @model_validator(mode="after")
    def _one_limit(self) -> Self:
        both = {self.max_tokens, self.max_completion_tokens} - {None}
        if len(both) > 1:
            raise invalid(
                "max_tokens and max_completion_tokens mean the same; send one of them",
                param="max_completion_tokens",
            )
        if self.top_logprobs and not self.logprobs:
            raise invalid("top_logprobs is only allowed with logprobs: true", param="top_logprobs")
        return self

    @model_validator(mode="after")
    def _choosable_tools(self) -> Self:
        choice, names = self.tool_choice, [tool.function.name for tool in self.tools or ()]
        if isinstance(choice, ChosenTool) and choice.function.name not in names:
            missing = f'"{choice.function.name}" is not among the tools'
            raise invalid(f"tool_choice.function.name: {missing}", param="tool_choice.function.name")
        if choice == "required" and not names:
            raise invalid('tool_choice is "required", but there are no tools', param="tool_choice")
        if self._forced and self._schema is not None:
            raise invalid(
                "response_format leaves no room for the call that tool_choice demands: send one of them",
                param="response_format",
            )
        return self

    @model_validator(mode="after")
    def _template_variables(self) -> Self:
        sent = () if self.reasoning_effort is None else ("reasoning_effort",)
        check_template_variables(self.chat_template_kwargs, *sent)
        return self

    @property
    def _offered(self) -> list[Tool]:
        """The tools that the model hears of."""
        return [] if self.tool_choice == "none" else self.tools or []

    @property
    def _forced(self) -> list[Tool]:
        """The tools of which one must be called."""
        if isinstance(self.tool_choice, ChosenTool):
            return [tool for tool in self._offered if tool.function.name == self.tool_choice.function.name]
        return self._offered if self.tool_choice == "required" else []

    @property
    def _schema(self) -> dict[str, Any] | None:
        """What an answer that is no call must fit; None: any text."""
        return None if self.response_format is None else self.response_format.wanted

    @property
    def _one_call(self) -> bool:
        return self.parallel_tool_calls is False or isinstance(self.tool_choice, ChosenTool)

    def _thinks(self, dialect: Dialect) -> bool:
        return dialect.thinks and (self.chat_template_kwargs or {}).get("enable_thinking") is not False

    def prompts(self) -> list[Prompt]:
        variables = dict(self.chat_template_kwargs or {})
        if self.reasoning_effort is not None:
            variables["reasoning_effort"] = self.reasoning_effort
        if self._offered:
            variables["tools"] = [tool.for_template() for tool in self._offered]
        return [
            Prompt(
                messages=[message.for_template() for message in self.messages],
                template=variables,
                limit_name="max_tokens" if self.max_completion_tokens is None else "max_completion_tokens",
                grammar_name="tools" if self._forced else "response_format",
            )
        ]

    def params(self, defaults: SamplingParams, dialect: Dialect) -> SamplingParams:
        """`defaults` are the model's. Without a limit, the answer may take the rest of the context.

        Raises `ApiError` for tools that a model of this dialect cannot call.
        """
        thinks, grammar = self._thinks(dialect), ""
        if self._offered and dialect.tools is None:
            raise invalid(
                "tools: this model's chat template has no tool calls that the server can read", param="tools"
            )
        if self._offered and self._schema is not None and dialect.tools == "llama3":
            raise invalid(
                "response_format: this model writes its calls as JSON, which cannot be told from such an answer; "
                'send it without tools, or with tool_choice "none"',
                param="response_format",
            )
        callable_tools = self._forced or (self._offered if self._schema is not None else [])
        if callable_tools and dialect.tools is not None:
            functions = [(tool.function.name, tool.function.schema_) for tool in callable_tools]
            parallel = not self._one_call
            grammar = tool_calls(
                dialect.tools, functions, parallel=parallel, thinks=thinks, otherwise=self._schema
            )
        elif self.response_format is not None:
            grammar = self.response_format.grammar(thinks=thinks)
        return self.sampling(
            defaults,
            max_tokens=self.max_completion_tokens or self.max_tokens,
            grammar=grammar,
            logprobs=(self.top_logprobs or 0) if self.logprobs else None,
        )

    def parser(self, dialect: Dialect) -> AnswerParser:
        """For the text of one answer."""
        tools = None
        if self._offered and dialect.tools is not None:
            names = frozenset(tool.function.name for tool in self._offered)
            most = 1 if self._one_call else None
            tools = ToolCallParser(dialect.tools, names, eager=bool(self.stream), most=most)
        return AnswerParser(ThoughtParser() if self._thinks(dialect) else None, tools)

    @property
    def reason_for_calls(self) -> str:
        """The finish reason of an answer that calls tools: "stop" where a named one had to be called."""
        return "stop" if isinstance(self.tool_choice, ChosenTool) else "tool_calls"


class CompletionRequest(GenerateRequest):
    """``POST /v1/completions``."""

    NEUTRAL: ClassVar[Neutral] = BOTH | COMPLETION
    prompt: PromptForms = Field(
        description="A string, a list of strings, a list of token ids, or a list of such lists."
    )
    logprobs: Logprobs | None = None
    echo: bool | None = Field(default=None, description="The text begins with the prompt.")
    best_of: int | None = Field(default=None, description="As n, if it is sent.")

    @model_validator(mode="after")
    def _best_of_all(self) -> Self:
        if self.best_of is not None and self.best_of != self.copies:
            message = f"best_of is not supported; only {self.copies}, the value of n, is accepted"
            raise invalid(message, param="best_of", code="unsupported_parameter")
        return self

    def prompts(self) -> list[Prompt]:
        echo = bool(self.echo)
        return [
            Prompt(text=prompt, echo=echo) if isinstance(prompt, str) else Prompt(token_ids=prompt, echo=echo)
            for prompt in self.prompt
        ]

    def params(self, defaults: SamplingParams, _dialect: Dialect) -> SamplingParams:
        """`defaults` are the model's."""
        return self.sampling(
            defaults,
            max_tokens=COMPLETION_MAX_TOKENS if self.max_tokens is None else self.max_tokens,
            grammar="" if self.response_format is None else self.response_format.grammar(thinks=False),
            logprobs=self.logprobs,
            prompt_logprobs=bool(self.echo) and self.logprobs is not None,
        )
