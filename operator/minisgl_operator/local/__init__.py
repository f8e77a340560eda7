"""Runs a service.yaml on this machine, without a cluster.

The pod is built as it is for a cluster (`build/template.py`), `pod.py` translates it into processes, `serve.py`
runs them as a kubelet would: probes, drain, and the end.
"""

from minisgl_operator.local.errors import LocalError
from minisgl_operator.local.serve import run_local

__all__ = ["LocalError", "run_local"]
