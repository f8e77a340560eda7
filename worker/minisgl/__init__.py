"""MiniSGLang's worker: an LLM inference engine that serves one model of one host's GPUs, or its CPU."""

__version__ = "0.1.0"
