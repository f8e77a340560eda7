"""The engine as a Python object."""

from minisgl.core.sampling import SamplingParams
from minisgl.llm.llm import LLM, Completion

__all__ = ["LLM", "Completion", "SamplingParams"]
