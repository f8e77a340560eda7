"""The operator: a MiniSGLangService becomes worker pods, a Service, and a status that tells the truth."""

__version__ = "0.1.0"
