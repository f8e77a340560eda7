"""A launcher of `stub_child` processes: ``python -m support.stub_launcher DIRECTORY DRAIN_SECONDS DOES...``.

The first child is the one that drains. The directory given is where the children write their process ids; the
private directory's path is written there too.
"""

from __future__ import annotations

import sys
from pathlib import Path

from minisgl.server.supervisor import Supervisor
from minisgl.utils.child import ChildHeader
from minisgl.utils.log import configure_logging
from minisgl.utils.sockets import private_directory
from support.stub_child import StubConfig


def main() -> int:
    configure_logging("launcher")
    directory, drain_seconds, *behaviours = sys.argv[1:]
    with private_directory() as private:
        (Path(directory) / "private").write_text(private)
        header = ChildHeader(name="", directory=private)
        with Supervisor(header, drain_seconds=float(drain_seconds)) as supervisor:
            for index, behaviour in enumerate(behaviours):
                does, _, status = behaviour.partition(":")
                config = StubConfig(does=does, pid_file=f"{directory}/{index}", status=int(status or 0))
                supervisor.start(f"stub-{index}", "support.stub_child", config, drains=index == 0)
            return supervisor.run()


if __name__ == "__main__":
    sys.exit(main())
