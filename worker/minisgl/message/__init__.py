"""The typed messages between the worker's processes, and their encoding."""

from minisgl.message.codec import Decoder, encode
from minisgl.message.types import (
    Abort,
    FromWorkers,
    Heartbeat,
    NewRequest,
    Rejected,
    Round,
    SchedulerReady,
    SchedulerStats,
    StepDigest,
    StepText,
    StepTokens,
    TextScore,
    TokenizeRequest,
    TokenText,
    ToScheduler,
    ToTokenizer,
)

__all__ = [
    "Abort",
    "Decoder",
    "FromWorkers",
    "Heartbeat",
    "NewRequest",
    "Rejected",
    "Round",
    "SchedulerReady",
    "SchedulerStats",
    "StepDigest",
    "StepText",
    "StepTokens",
    "TextScore",
    "ToScheduler",
    "ToTokenizer",
    "TokenText",
    "TokenizeRequest",
    "encode",
]
