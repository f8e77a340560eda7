"""The engine as a Python object."""

from minisgl.core.sampling import SamplingParams
from minisgl.llm.llm import LLM, Completion
from minisgl.llm.ranks import RankLostError

__all__ = ["LLM", "Completion", "RankLostError", "SamplingParams"]
