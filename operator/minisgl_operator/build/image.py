"""Which image the worker runs."""

from __future__ import annotations

from dataclasses import dataclass

from minisgl_operator import api


@dataclass(frozen=True)
class Defaults:
    """Settings of the operator that shape children."""

    worker_image: str
    cpu_worker_image: str
    pull_policy: str | None = None
    operator_namespace: str | None = None


@dataclass(frozen=True)
class Reference:
    """An image's name: ``[HOST[:PORT]/]PATH[:TAG][@DIGEST]``."""

    repository: str
    tag: str | None = None
    digest: str | None = None

    @classmethod
    def parse(cls, text: str) -> Reference:
        rest, _, digest = text.partition("@")
        # A colon before the last slash belongs to the port of the registry.
        folder, slash, last = rest.rpartition("/")
        name, _, tag = last.partition(":")
        return cls(folder + slash + name, tag or None, digest or None)

    def __str__(self) -> str:
        tag = f":{self.tag}" if self.tag else ""
        return f"{self.repository}{tag}{f'@{self.digest}' if self.digest else ''}"


def worker_image(spec: api.Spec, defaults: Defaults, pinned: str | None) -> str:
    """What `spec.image` gives, over the image that was `pinned`, over the operator's default for the device."""
    default = defaults.cpu_worker_image if spec.engine.device == "cpu" else defaults.worker_image
    base = Reference.parse(pinned or default)
    given = spec.image
    tag, digest = given.tag, given.digest
    # A tag and a digest say the same thing twice: one of the spec's is not mixed with one of the base's, of which
    # the digest would win.
    if tag is None and digest is None:
        tag, digest = base.tag, base.digest
    return str(Reference(given.repository or base.repository, tag, digest))


def pull_policy(spec: api.Spec, defaults: Defaults) -> str | None:
    """None: what Kubernetes does, which looks at the tag."""
    return spec.image.pull_policy or defaults.pull_policy
