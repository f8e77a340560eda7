"""Everything that a new service gets."""

from __future__ import annotations

from minisgl_operator import api
from minisgl_operator.build import cache, network, policy, strategy
from minisgl_operator.build.deployment import deployment
from minisgl_operator.build.identity import Identity, Object
from minisgl_operator.build.image import Defaults, pull_policy, worker_image
from minisgl_operator.build.revision import controller_revision, revision_of
from minisgl_operator.build.template import pod_template


def children(identity: Identity, spec: api.Spec, defaults: Defaults) -> list[Object]:
    """In the order in which they are applied. The Job's name differs in a cluster: there the claim has a uid.

    Raises `model.NoModel` for a source that cannot be served.
    """
    image, pull = worker_image(spec, defaults, None), pull_policy(spec, defaults)
    template, revision = pod_template(identity, spec, image, pull_policy=pull), revision_of(spec)
    needed = cache.needs_cache(spec)
    made = [
        policy.service_account(identity),
        cache.claim(identity, spec),
        network.network_policy(identity, spec, defaults),
        network.service(identity, spec),
        policy.disruption_budget(identity, spec),
        controller_revision(identity, revision, 1, template),
        cache.download_job(identity, spec, image, "", pull_policy=pull) if needed else None,
        deployment(
            identity,
            spec,
            template,
            revision,
            strategy=strategy.first_choice(spec),
            replicas=0 if spec.suspend else spec.replicas,
        ),
    ]
    return [child for child in made if child is not None]
