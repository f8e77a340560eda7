"""Every state of a pod becomes the reason that a user can act on."""

from __future__ import annotations

import json
from typing import Any

import pytest

from minisgl_operator.observe.containers import Failure
from minisgl_operator.observe.pods import PodState, pod_state
from minisgl_operator.observe.times import parse_time
from support import cluster_objects as objects
from support.cluster_objects import container, download_pod, running, terminated, waiting


def state(pod: dict[str, Any], *, gpu_resource: str = "nvidia.com/gpu", mount_failure: str = "") -> PodState:
    return pod_state(pod, gpu_resource=gpu_resource, now=objects.NOW, mount_failure=mount_failure)


def worker(status: dict[str, Any], **fields: Any) -> Failure | None:
    return state(objects.pod(container("worker", status, **fields))).failure


TAINTS = "1 node(s) had untolerated taint(s)"
SENTENCES = [
    ("2 Insufficient nvidia.com/gpu, 1 Insufficient cpu, 1 Insufficient memory", "InsufficientGPU"),
    (f"{TAINTS}, 2 Insufficient cpu, 1 Insufficient memory", "InsufficientCPU"),
    (f"{TAINTS}, 2 Insufficient memory", "InsufficientMemory"),
    ("1 node(s) had untolerated taint {nvidia.com/gpu: present}", "UntoleratedTaint"),
    (f"{TAINTS}, 2 node(s) didn't match Pod's node affinity/selector", "UntoleratedTaint"),
    ("3 node(s) didn't match Pod's node affinity/selector", "NodeSelectorMismatch"),
    ("3 node(s) didn't match pod anti-affinity rules", "NodeSelectorMismatch"),
    ("2 node(s) had volume node affinity conflict", "VolumeConflict"),
    ("1 node(s) didn't match PersistentVolume's node affinity, " + TAINTS, "VolumeConflict"),
    ("3 Too many pods", "Unschedulable"),
    ("3 node(s) didn't match pod topology spread constraints", "Unschedulable"),
    ("2 Insufficient amd.com/gpu", "Unschedulable"),
]


@pytest.mark.parametrize(("causes", "reason"), SENTENCES)
def test_the_scheduler_says_why_no_node_takes_a_pod(causes: str, reason: str) -> None:
    message = (
        f"0/3 nodes are available: {causes}. preemption: 0/3 nodes are available: 3 Insufficient nvidia.com/gpu."
    )
    found = state(objects.unplaced(message, since=20))
    assert found.failure is None and not found.scheduled
    assert found.unschedulable is not None
    assert found.unschedulable.reason == reason
    assert found.unschedulable.message == f"0/3 nodes are available: {causes}."
    assert found.unschedulable.since == parse_time(objects.at(20))


def test_the_gpu_is_the_one_that_the_service_names() -> None:
    pod = objects.unplaced("0/1 nodes are available: 1 Insufficient amd.com/gpu.")
    found = state(pod, gpu_resource="amd.com/gpu").unschedulable
    assert found is not None and found.reason == "InsufficientGPU"


@pytest.mark.parametrize(
    "message",
    [
        "0/3 nodes are available: pod has unbound immediate PersistentVolumeClaims. not found",
        '0/3 nodes are available: persistentvolumeclaim "models" not found. not found',
        "0/3 nodes are available: 3 node(s) didn't find available persistent volumes to bind.",
    ],
)
def test_a_claim_without_a_volume_is_the_models_trouble(message: str) -> None:
    found = state(objects.unplaced(message))
    assert found.unschedulable is None
    assert found.failure == Failure("ModelCached", "PVCPending", message)


def test_an_error_of_the_scheduler_itself_says_nothing_of_the_nodes() -> None:
    pod = objects.unplaced("binding rejected: running Bind plugin: the object has been modified")
    pod["status"]["conditions"][1]["reason"] = "SchedulerError"
    assert state(pod).unschedulable is None


def test_a_placed_pod_is_schedulable() -> None:
    assert state(objects.starting()).unschedulable is None
    assert state(objects.starting()).scheduled


PULL = 'failed to pull and unpack image "registry.example/none:1": registry.example/none:1: not found'


@pytest.mark.parametrize(
    ("reason", "message", "told"),
    [
        ("ErrImagePull", PULL, PULL),
        ("ImagePullBackOff", f'Back-off pulling image "registry.example/none:1": ErrImagePull: {PULL}', PULL),
        (
            "InvalidImageName",
            'Failed to apply default image tag "UPPER"',
            'Failed to apply default image tag "UPPER"',
        ),
        ("ErrImageNeverPull", "", objects.IMAGE),
    ],
)
def test_an_image_that_cannot_be_pulled(reason: str, message: str, told: str) -> None:
    assert worker(waiting(reason, message)) == Failure(
        "Degraded", "ImagePullError", f"worker: cannot pull: {told}"
    )


def test_an_image_of_an_init_container_that_cannot_be_pulled() -> None:
    pod = objects.pod(
        container("worker", waiting("PodInitializing")), init=container("download", waiting("ErrImagePull", PULL))
    )
    assert state(pod).failure == Failure("Degraded", "ImagePullError", f"download: cannot pull: {PULL}")


@pytest.mark.parametrize(
    ("reason", "message"),
    [
        ("CreateContainerConfigError", 'secret "keys" not found'),
        (
            "CreateContainerError",
            "ImageVolumeMountFailed: subPath x does not exist",
        ),
        ("RunContainerError", "failed to create shim task: OCI runtime create failed"),
    ],
)
def test_a_container_that_cannot_be_made(reason: str, message: str) -> None:
    assert worker(waiting(reason, message)) == Failure("Degraded", reason, f"worker: {message}")


@pytest.mark.parametrize("reason", ["ContainerCreating", "PodInitializing"])
def test_a_container_that_is_about_to_start_is_well(reason: str) -> None:
    assert worker(waiting(reason)) is None


OOM = terminated(137, reason="OOMKilled")


@pytest.mark.parametrize(
    "pod",
    [
        objects.pod(container("worker", OOM)),
        objects.pod(container("worker", waiting("CrashLoopBackOff"), last=OOM, restarts=3)),
        objects.pod(container("worker", running(), last=OOM, restarts=1)),
        objects.pod(container("worker", running()), container("sidecar", OOM)),
        objects.pod(container("worker", waiting("PodInitializing")), init=container("download", OOM)),
    ],
)
def test_out_of_memory(pod: dict[str, Any]) -> None:
    failure = state(pod).failure
    assert failure is not None
    assert (failure.type, failure.reason) == ("Degraded", "OOMKilled")


LOG = "12:00:01 I minisgl.launcher: starting\n"
USER_ERRORS = [
    ("--tp 2: this machine has 1 CUDA devices", "TensorParallelMismatch"),
    ("--max-seq-len 99999: /models/x reads at most 8192 tokens", "InvalidEngineOption"),
    ("argument --attn: invalid choice: 'best'; try it without --tp", "InvalidEngineOption"),
    ("unrecognized arguments: --fast", "InvalidEngineOption"),
    ("/models/Qwen/x/main/config.json: no such file, but a model directory needs it", "InvalidModel"),
    ("/models/org--tp/config.json: not JSON", "InvalidModel"),
    ("--model /model/x: no such directory", "InvalidModel"),
]


@pytest.mark.parametrize(("text", "reason"), USER_ERRORS)
@pytest.mark.parametrize("again", [False, True])
def test_a_worker_that_can_never_work(text: str, reason: str, again: bool) -> None:
    end = terminated(2, f"{LOG}minisgl: error: {text}\n")
    now = waiting("CrashLoopBackOff", "back-off 40s restarting failed container=worker") if again else end
    assert worker(now, last=end if again else None) == Failure("ConfigValid", reason, text)


def test_a_worker_that_can_never_work_stays_so_while_it_is_tried_again() -> None:
    end = terminated(2, "minisgl: error: --tp 2: this machine has 1 CUDA devices")
    failure = worker(running(1), last=end, restarts=4)
    assert failure is not None and failure.reason == "TensorParallelMismatch"


def test_an_error_in_a_log_of_json_is_read() -> None:
    line = {"time": "2026-01-01T12:00:00.000+00:00", "level": "error", "message": "minisgl: error: --tp 2: no"}
    end = terminated(2, '{"message": "loading"}\n' + json.dumps(line) + "\n")
    assert worker(end) == Failure("ConfigValid", "TensorParallelMismatch", "--tp 2: no")
    assert worker(terminated(2, "{not json}")) == Failure("ConfigValid", "InvalidModel", "{not json}")


def test_exit_status_2_without_a_line_still_says_something() -> None:
    assert worker(terminated(2)) == Failure("ConfigValid", "InvalidModel", "worker exited with status 2")


DIED = terminated(1, "12:00:09 E minisgl.launcher: scheduler exited with status 1: stopping the worker\n")
SAID = "E minisgl.launcher: scheduler exited with status 1: stopping the worker"


def test_the_first_death_of_an_engine() -> None:
    expected = Failure("Degraded", "EngineDied", f"worker exited with status 1: {SAID}")
    assert worker(DIED) == expected
    assert worker(running(), last=DIED, restarts=1) == expected


def test_a_killed_engine_names_the_signal() -> None:
    assert worker(terminated(137)) == Failure("Degraded", "EngineDied", "worker was killed by signal 9")


def test_a_crash_loop_is_told_of_in_the_same_words_between_and_during_attempts() -> None:
    between = worker(waiting("CrashLoopBackOff", "back-off 20s restarting failed"), last=DIED, restarts=2)
    during = worker(running(1), last=DIED, restarts=3)
    assert between == during
    assert between == Failure(
        "Degraded", "CrashLoopBackOff", f"worker exited with status 1, again and again: {SAID}"
    )


def test_a_long_run_ends_a_crash_loop() -> None:
    failure = worker(running(1), last=terminated(1, lasted=3600), restarts=5)
    assert failure is not None and failure.reason == "EngineDied"


def test_a_pod_that_is_ready_again_has_no_failure() -> None:
    pod = objects.pod(container("worker", running(), last=OOM, restarts=3, ready=True), ready=True)
    assert state(pod).failure is None


def test_a_worker_that_has_started_again_has_no_failure_though_it_is_not_ready_just_now() -> None:
    assert worker(running(900), last=DIED, restarts=3, started=True) is None


def test_evicted() -> None:
    found = state(objects.evicted())
    assert found.finished and not found.ready
    assert found.failure is not None and found.failure.reason == "Evicted"
    assert found.failure.message.startswith("The node was low on resource: ephemeral-storage.")


def test_any_other_failed_pod() -> None:
    status = {"reason": "UnexpectedAdmissionError", "message": "Allocate failed due to no healthy devices present"}
    found = state(objects.pod(phase="Failed", status=status))
    assert found.failure == Failure("Degraded", "PodFailed", f"{status['reason']}: {status['message']}")


def test_a_volume_that_cannot_be_mounted() -> None:
    text = 'MountVolume.SetUp failed for volume "api-key" : secret "keys" not found'
    pod = objects.pod(container("worker", waiting("ContainerCreating")), phase="Pending")
    assert state(pod, mount_failure=text).failure == Failure("Degraded", "FailedMount", text)
    assert state(objects.starting(), mount_failure=text).failure is None


@pytest.mark.parametrize(
    ("code", "reason"),
    [(10, "NotFound"), (11, "AuthFailed"), (12, "NoSpace"), (13, "HubUnreachable"), (1, "DownloadFailed")],
)
def test_a_download_that_fails(code: int, reason: str) -> None:
    log = '{"bytes_done": 1, "bytes_total": 9}\nminisgl.download: error: the hub says no\n'
    expected = Failure("ModelCached", reason, "the hub says no")
    end = terminated(code, log)
    init = container("download", waiting("CrashLoopBackOff"), last=end)
    assert state(objects.pod(container("worker", waiting("PodInitializing")), init=init)).failure == expected
    assert state(download_pod(end, phase="Failed")).failure == expected


def test_a_new_attempt_to_download_counts_once_it_lasts() -> None:
    end = terminated(13, "minisgl.download: error: no route to host")
    young, old = (state(download_pod(running(seconds), last=end)) for seconds in (5, 60))
    assert young.failure is not None and young.failure.reason == "HubUnreachable"
    assert old.failure is None and old.download == "running"


def test_how_far_a_download_is() -> None:
    assert state(objects.starting()).download == "none"
    assert state(download_pod(waiting("ContainerCreating"))).download == "waiting"
    assert state(download_pod(terminated(0), phase="Succeeded")).download == "done"
    assert state(download_pod(terminated(0), phase="Succeeded")).failure is None


def test_a_pod_on_its_way_out_is_not_ready_and_has_no_failure() -> None:
    found = state(objects.draining())
    assert found.terminating and not found.ready
    assert state(objects.pod(container("worker", OOM), terminating=True)).failure is None
