"""Where the model is: claim, Job, download pods and init containers."""

from __future__ import annotations

from typing import Any

import pytest

from minisgl_operator.observe.model import ModelState, cache_status, model_state
from minisgl_operator.observe.observed import Observed, Progress
from support import cluster_objects as objects
from support.cluster_objects import (
    CACHED,
    HUGGING_FACE,
    OCI,
    PVC,
    container,
    download_pod,
    observed,
    running,
    terminated,
    waiting,
)


def cached(*pods: dict[str, Any], **fields: Any) -> Observed:
    given = {"claim": objects.claim(), "job": objects.job(), "deployment": None}
    return observed(*pods, spec=CACHED, **(given | fields))


def told(seen: Observed) -> tuple[str, str]:
    state = model_state(seen)
    return state.status, state.reason


def phase(seen: Observed) -> str | None:
    status = cache_status(seen, model_state(seen))
    return None if status is None else status.phase


def with_init(
    state: dict[str, Any], *, name: str = "qwen3-1", last: dict[str, Any] | None = None
) -> dict[str, Any]:
    init = container("download", state, last=last)
    return objects.pod(container("worker", waiting("PodInitializing")), name=name, phase="Pending", init=init)


FAILED = terminated(11, "minisgl.download: error: meta/llama: gated: the token has no access")


def test_a_mounted_model_is_provided() -> None:
    seen = observed(spec=OCI)
    assert told(seen) == ("True", "Provided")
    assert cache_status(seen, model_state(seen)) is None
    assert told(observed(spec=PVC, claim=objects.claim(name="models"))) == ("True", "Provided")


def test_a_claim_that_does_not_exist() -> None:
    assert model_state(observed(spec=PVC)) == ModelState("False", "PVCPending", "claim models does not exist")
    assert model_state(cached(claim=None)).message == "claim qwen3-cache does not exist"
    existing = {**HUGGING_FACE, "cache": {"existingClaim": "shared"}}
    assert model_state(observed(spec=existing)).message == "claim shared does not exist"


def test_a_claim_that_is_not_bound_says_why() -> None:
    event = 'storageclass.storage.k8s.io "fast" not found'
    state = model_state(cached(claim=objects.claim("Pending"), claim_events=event))
    assert state == ModelState("False", "PVCPending", f"claim qwen3-cache is not bound: {event}")


def test_the_scheduler_says_that_a_claim_does_not_bind() -> None:
    message = "0/1 nodes are available: pod has unbound immediate PersistentVolumeClaims."
    pod = objects.unplaced(message, name="qwen3-download-1", revision="")
    state = model_state(cached(claim=objects.claim("Pending"), download_pods=(pod,)))
    assert (state.reason, state.waits) == ("PVCPending", False)
    assert message in state.message


def test_a_claim_that_waits_for_its_first_pod_is_no_trouble_by_itself() -> None:
    seen = cached(claim=objects.claim("Pending"))
    assert model_state(seen) == ModelState("False", "PVCPending", "claim qwen3-cache is not bound", waits=True)
    assert phase(seen) == "Pending"


def test_a_lost_volume() -> None:
    assert model_state(cached(claim=objects.claim("Lost"))).message == "claim qwen3-cache has lost its volume"


@pytest.mark.parametrize("state", [waiting("ContainerCreating"), running(120)])
def test_a_download_in_its_job(state: dict[str, Any]) -> None:
    seen = cached(download_pods=(download_pod(state),))
    assert told(seen) == ("False", "Downloading")
    assert model_state(seen).waits
    assert phase(seen) == "Downloading"


def test_a_finished_job() -> None:
    seen = cached(job=objects.job("Complete"), download_pods=(download_pod(FAILED, phase="Failed"),))
    assert told(seen) == ("True", "Cached")
    assert phase(seen) == "Cached"


def test_a_job_that_was_cleaned_away_takes_nothing_from_a_worker_that_has_the_model() -> None:
    assert told(cached(objects.serving(), job=None)) == ("True", "Cached")
    assert told(cached(objects.starting(), job=None)) == ("False", "Downloading")
    assert told(cached(objects.serving(revision=objects.OLD), job=None)) == ("False", "Downloading")


@pytest.mark.parametrize(
    ("code", "reason"), [(10, "NotFound"), (11, "AuthFailed"), (12, "NoSpace"), (13, "HubUnreachable")]
)
def test_a_download_that_fails(code: int, reason: str) -> None:
    end = terminated(code, "minisgl.download: error: no such thing")
    expected = ModelState("False", reason, "no such thing")
    seen = cached(download_pods=(download_pod(end, phase="Failed"),), job=objects.job("Failed", "backoff limit"))
    assert model_state(seen) == expected
    assert phase(seen) == "Failed"
    assert model_state(observed(with_init(waiting("CrashLoopBackOff"), last=end), spec=HUGGING_FACE)) == expected


def test_a_failed_job_without_its_pods() -> None:
    state = model_state(cached(job=objects.job("Failed", "Job was active longer than specified deadline")))
    assert state == ModelState("False", "DownloadFailed", "Job was active longer than specified deadline")


def test_the_newest_attempt_counts_once_it_lasts() -> None:
    failed = download_pod(FAILED, name="a", age=300, phase="Failed")
    waits = download_pod(waiting("ContainerCreating"), name="b", age=10)
    young = download_pod(running(5), name="c", age=10)
    lasting = download_pod(running(100), name="d", age=110)
    assert told(cached(download_pods=(failed, waits))) == ("False", "AuthFailed")
    assert told(cached(download_pods=(young, failed))) == ("False", "AuthFailed")
    assert told(cached(download_pods=(failed, lasting))) == ("False", "Downloading")


def test_without_a_cache_each_pod_downloads() -> None:
    done = with_init(terminated(0), name="qwen3-2")
    busy = with_init(running(60), name="qwen3-3")
    failing = with_init(FAILED, name="qwen3-4")
    assert told(observed(spec=HUGGING_FACE)) == ("False", "Downloading")
    assert told(observed(done, spec=HUGGING_FACE)) == ("True", "Cached")
    assert told(observed(done, busy, spec=HUGGING_FACE)) == ("False", "Downloading")
    assert told(observed(done, busy, failing, spec=HUGGING_FACE)) == ("False", "AuthFailed")
    assert told(observed(done, objects.unplaced(name="qwen3-5"), spec=HUGGING_FACE)) == ("True", "Cached")


def test_without_a_cache_and_without_a_pod_nobody_knows() -> None:
    assert told(observed(spec={**HUGGING_FACE, "suspend": True})) == ("Unknown", "NoPod")


def test_progress_is_kept_when_it_can_be_read_no_more() -> None:
    seen = cached(download_pods=(download_pod(running(60)),), progress=Progress(3, 9))
    status = cache_status(seen, model_state(seen))
    assert status is not None
    assert (status.phase, status.bytes_done, status.bytes_total) == ("Downloading", 3, 9)

    held = {"cache": {"phase": "Downloading", "bytesDone": 9, "bytesTotal": 9}}
    done = cached(job=objects.job("Complete"), status=held)
    status = cache_status(done, model_state(done))
    assert status is not None
    assert (status.phase, status.bytes_done, status.bytes_total) == ("Cached", 9, 9)


def test_another_model_begins_without_the_progress_of_the_one_before() -> None:
    held = {"cache": {"phase": "Cached", "bytesDone": 9, "bytesTotal": 9}}
    seen = cached(status=held)
    status = cache_status(seen, model_state(seen))
    assert status is not None
    assert (status.phase, status.bytes_done, status.bytes_total) == ("Downloading", None, None)
