"""A pod as processes of this machine."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from minisgl.download import target
from minisgl_operator import api
from minisgl_operator.build.engine_args import worker_args
from minisgl_operator.build.identity import Identity
from minisgl_operator.build.template import pod_template
from minisgl_operator.local import LocalError
from minisgl_operator.local.model import BEGUN, WHOLE, find_model
from minisgl_operator.local.pod import CLUSTER_FIELDS, LocalPod, Place, notes, processes
from minisgl_operator.validate import validate

Json = dict[str, Any]
HUB = {"huggingFace": {"repo": "Qwen/Qwen3-14B"}}
CLAIM = {"pvc": {"claimName": "weights"}}
PLACE = Place(models=Path("/m"), cache=Path("/home/me/.cache/minisgl"), scratch=Path("/scratch"))
OWN = {"PATH": "/bin", "HOME": "/home/me"}


def document(model: Json | None = None, **fields: Any) -> Json:
    return validate(
        {
            "apiVersion": api.API_VERSION,
            "kind": api.KIND,
            "metadata": {"name": "qwen3"},
            "spec": {"model": model or HUB, **fields},
        }
    )


def local(
    model: Json | None = None,
    *,
    secrets: dict[str, dict[str, str]] | None = None,
    place: Place = PLACE,
    environ: dict[str, str] | None = None,
    host: str = "127.0.0.1",
    port: int = 9000,
    **fields: Any,
) -> LocalPod:
    given = OWN if environ is None else environ
    return processes(document(model, **fields), secrets or {}, place, host=host, port=port, environ=given)


def option(pod: LocalPod, name: str) -> list[str]:
    return [text.partition("=")[2] for text in pod.worker.command if text.partition("=")[0] in (name, f"--{name}")]


class TestCommand:
    @pytest.mark.parametrize(
        "fields",
        [
            {},
            {"parallelism": {"tensor": 4}, "engine": {"dtype": "bfloat16", "memoryRatio": 0.5}},
            {"engine": {"device": "cpu", "cacheType": "naive", "extraArgs": ["--num-tokenizer=2"]}},
            {"rollout": {"drainTimeoutSeconds": 7}},
        ],
    )
    def test_is_the_containers_but_for_the_address_and_the_model(self, fields: Json) -> None:
        spec = api.Spec.model_validate(document(**fields)["spec"])
        expected = worker_args("qwen3", spec, "/m/Qwen/Qwen3-14B/main", host="::1", port=9000)
        assert local(host="::1", **fields).worker.command == [sys.executable, "-m", "minisgl", *expected]

    def test_paths_below_a_mount_are_translated_wherever_they_stand(self) -> None:
        pod = local(
            engine={"extraArgs": ["--a=/models/x,/cache/y", "/models", "--b=/modelsx", "--c=x/models", "/tmp/z"]}
        )
        assert pod.worker.command[-5:] == [
            "--a=/m/x,/home/me/.cache/minisgl/y",
            "/m",
            "--b=/modelsx",
            "--c=x/models",
            "/tmp/z",
        ]

    def test_a_translated_path_is_not_translated_again(self) -> None:
        place = Place(models=Path("/cache/models"), cache=Path("/models/cache"), scratch=Path("/scratch"))
        pod = local(place=place, env=[{"name": "A", "value": "/models/a"}, {"name": "B", "value": "$(A):/cache"}])
        assert pod.worker.environment["B"] == "/cache/models/a:/models/cache"

    def test_references_to_variables_are_those_of_kubernetes(self) -> None:
        pod = local(
            env=[{"name": "A", "value": "1"}, {"name": "B", "value": "$(A)$(B)$$(A)$(PATH)"}],
            engine={"extraArgs": ["--x=$(B)", "--y=$(NONE)"]},
        )
        assert pod.worker.environment["B"] == "1$(B)$(A)$(PATH)"
        assert pod.worker.command[-2:] == ["--x=1$(B)$(A)$(PATH)", "--y=$(NONE)"]


class TestModel:
    def test_of_the_hub_is_downloaded_into_the_models_directory(self) -> None:
        pod = local({"huggingFace": {"repo": "Qwen/Qwen3-14B", "revision": "refs/pr/1"}})
        assert pod.download is not None
        assert pod.download.command == [
            sys.executable,
            "-m",
            "minisgl.download",
            "--repo=Qwen/Qwen3-14B",
            "--revision=refs/pr/1",
            "--into=/m/Qwen/Qwen3-14B/refs/pr/1",
        ]
        assert option(pod, "--model") == ["/m/Qwen/Qwen3-14B/refs/pr/1"] == [str(pod.model)]

    def test_with_a_cache_is_downloaded_by_its_job(self) -> None:
        assert local(cache={"size": "1Gi"}).download == local().download
        assert local(cache={"existingClaim": "shared"}).download == local().download

    def test_that_is_there_is_used(self) -> None:
        place = Place(PLACE.models, PLACE.cache, PLACE.scratch, model=Path("/m/Qwen3-14B"))
        pod = local(place=place)
        assert pod.download is None
        assert option(pod, "--model") == ["/m/Qwen3-14B"] == [str(pod.model)]

    def test_of_a_claim_is_a_directory_of_its_name(self) -> None:
        assert option(local(CLAIM), "--model") == ["/m/weights"]
        pod = local({"pvc": {"claimName": "weights", "subPath": "llama/8b"}})
        assert option(pod, "--model") == ["/m/weights/llama/8b"]
        assert (pod.download, pod.model) == (None, Path("/m/weights/llama/8b"))

    def test_is_called_what_the_service_calls_it(self) -> None:
        assert local().served_name == "qwen3"
        assert local({**HUB, "servedName": "Big"}).served_name == "Big"


class TestEnvironment:
    def test_is_on_top_of_our_own(self) -> None:
        pod = local(env=[{"name": "PATH", "value": "/opt"}], environ={**OWN, "HTTPS_PROXY": "http://proxy"})
        assert pod.worker.environment["PATH"] == "/opt"
        assert pod.worker.environment["HTTPS_PROXY"] == "http://proxy"

    def test_caches_are_kept_and_homes_stay_the_users(self) -> None:
        environment = local().worker.environment
        assert environment["TRITON_CACHE_DIR"] == "/home/me/.cache/minisgl/triton"
        assert environment["HOME"] == "/home/me"
        assert not {"HF_HOME", "XDG_CACHE_HOME"} & environment.keys()
        mine = {**OWN, "HF_HOME": "/hf", "XDG_CACHE_HOME": "/xdg"}
        assert local(environ=mine).worker.environment.items() >= mine.items()

    def test_a_home_that_the_spec_sets_is_set(self) -> None:
        assert local(env=[{"name": "HOME", "value": "/cache/x"}]).worker.environment["HOME"] == (
            "/home/me/.cache/minisgl/x"
        )

    def test_no_variable_holds_a_path_that_only_a_pod_has(self) -> None:
        secret = {"apiKeySecretRef": {"name": "key"}}
        pod = local(auth=secret, secrets={"key": {"api-key": "k"}})
        assert pod.download is not None
        for process in (pod.worker, pod.download):
            for text in (*process.command, *process.environment.values()):
                assert not text.startswith(("/models", "/cache", "/etc/minisgl")), text

    def test_a_value_from_a_secret_of_the_file(self) -> None:
        wanted = {"name": "TOKEN", "valueFrom": {"secretKeyRef": {"name": "s", "key": "k"}}}
        pod = local(env=[wanted], secrets={"s": {"k": "/models"}}, environ={**OWN, "TOKEN": "mine"})
        assert pod.worker.environment["TOKEN"] == "/models", "a secret is no path"

    def test_a_secret_that_is_not_in_the_file_may_be_in_the_environment(self) -> None:
        token = {"huggingFace": {"repo": "a/b", "tokenSecretRef": {"name": "hub"}}}
        pod = local(token, environ={**OWN, "HF_TOKEN": "mine"})
        assert pod.download is not None and pod.download.environment["HF_TOKEN"] == "mine"

    def test_an_optional_secret_may_be_missing(self) -> None:
        wanted = {"name": "T", "valueFrom": {"secretKeyRef": {"name": "s", "key": "k", "optional": True}}}
        assert "T" not in local(env=[wanted]).worker.environment

    def test_the_token_is_for_the_download_alone(self) -> None:
        token = {"huggingFace": {"repo": "a/b", "tokenSecretRef": {"name": "hub"}}}
        pod = local(token, secrets={"hub": {"HF_TOKEN": "t"}})
        assert pod.download is not None and pod.download.environment["HF_TOKEN"] == "t"
        assert "HF_TOKEN" not in pod.worker.environment

    def test_a_token_is_not_asked_for_when_the_model_is_there(self) -> None:
        token = {"huggingFace": {"repo": "a/b", "tokenSecretRef": {"name": "hub"}}}
        place = Place(PLACE.models, PLACE.cache, PLACE.scratch, model=Path("/m/b"))
        assert local(token, place=place).download is None


class TestApiKey:
    def test_comes_by_a_private_file(self) -> None:
        secret = {"apiKeySecretRef": {"name": "key", "key": "k"}}
        own = {**OWN, "MINISGL_API_KEY": "another"}
        pod = local(auth=secret, secrets={"key": {"k": "secret"}}, environ=own)
        assert pod.files == {Path("/scratch/api-key/api-key"): "secret"}
        assert pod.worker.environment["MINISGL_API_KEY_FILE"] == "/scratch/api-key/api-key" == str(pod.key_file)
        assert "MINISGL_API_KEY" not in pod.worker.environment, "the worker refuses two"

    def test_our_own_is_the_workers_when_the_spec_has_none(self) -> None:
        pod = local(environ={**OWN, "MINISGL_API_KEY": "mine"})
        assert pod.worker.environment["MINISGL_API_KEY"] == "mine"
        assert (pod.files, pod.key_file) == ({}, None)


def test_probes_and_grace_are_the_pods() -> None:
    fields: Json = {"probes": {"startupTimeoutSeconds": 61}, "rollout": {"drainTimeoutSeconds": 9}}
    pod = local(**fields)
    given = document(**fields)
    template = pod_template(Identity.of(given), api.Spec.model_validate(given["spec"]), "worker:1")["spec"]
    assert (pod.startup.path, pod.startup.period * pod.startup.failures) == ("/ready", 62)
    assert (pod.liveness.path, pod.liveness.failures) == ("/live", 6)
    assert pod.grace_seconds == template["terminationGracePeriodSeconds"]


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"model": {"oci": {"image": "m:1"}}}, "spec.model.oci: an image cannot be mounted here"),
        ({"model": {"s3": {"uri": "s3://a/b"}}}, "not supported yet: spec.model.s3"),
        ({"tls": {"secretName": "x"}, "gateway": {}}, "not supported yet: spec.tls, spec.gateway"),
        ({"envFrom": [{"secretRef": {"name": "x"}}]}, "spec.envFrom: "),
        (
            {"env": [{"name": "IP", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}}]},
            "spec.env: IP: valueFrom.fieldRef needs a cluster",
        ),
        ({"env": [{"name": "IP", "valueFrom": {}}]}, "spec.env: IP: valueFrom. needs a cluster"),
        (
            {"env": [{"name": "T", "valueFrom": {"secretKeyRef": {"name": "s"}}}]},
            "spec.env: T: valueFrom.secretKeyRef must have a name and a key",
        ),
        (
            {"env": [{"name": "T", "valueFrom": {"secretKeyRef": {"name": "s", "key": "k"}}}]},
            "Secret s is not in the file: add it there as another document, with the key k; or set T in the",
        ),
        (
            {"env": [{"name": "T", "valueFrom": {"secretKeyRef": {"name": "there", "key": "k"}}}]},
            "Secret there has no key k; or set T in the environment",
        ),
        ({"auth": {"apiKeySecretRef": {"name": "s"}}}, "Secret s is not in the file"),
        ({"auth": {"apiKeySecretRef": {"name": "there"}}}, "Secret there has no key api-key"),
        (
            {"model": {"huggingFace": {"repo": "a/b", "tokenSecretRef": {"name": "hub"}}}},
            "Secret hub is not in the file: add it there as another document, with the key HF_TOKEN; or set",
        ),
    ],
)
def test_what_cannot_be_done_here_is_one_line(fields: Json, words: str) -> None:
    with pytest.raises(LocalError) as refused:
        local(secrets={"there": {"other": "x"}}, **fields)
    assert str(refused.value).startswith(words)
    assert "\n" not in str(refused.value)


class TestNotes:
    @staticmethod
    def of(**fields: Any) -> list[str]:
        return notes(api.Spec.model_validate(document(**fields)["spec"]))

    def test_none_for_what_is_at_its_default_or_done(self) -> None:
        assert self.of() == []
        assert self.of(engine={"device": "cpu"}, rollout={"drainTimeoutSeconds": 3}, replicas=1) == []

    def test_replicas(self) -> None:
        assert self.of(replicas=3) == ["spec.replicas is 3: one runs here"]

    def test_fields_that_need_a_cluster_are_named(self) -> None:
        fields: Json = {
            "scheduling": {"nodeSelector": {"a": "b"}},
            "image": {"tag": "x"},
            "rollout": {"strategy": "InPlace"},
        }
        assert self.of(**fields) == [
            "without a cluster these have no effect: spec.image, spec.scheduling, spec.rollout.strategy"
        ]

    def test_every_field_has_an_effect_or_a_note_or_is_refused(self) -> None:
        """A new field of the spec must be thought of here."""
        done = {"model", "parallelism", "engine", "env", "probes", "rollout", "auth", "suspend"}
        refused = {"autoscaling", "tls", "monitoring", "gateway", "envFrom"}
        fields = {field.alias for field in api.Spec.model_fields.values()}
        assert fields == done | refused | {"replicas"} | set(CLUSTER_FIELDS)


class TestFindModel:
    SOURCE = api.HuggingFace(repo="Org/Name", revision="v1")

    @staticmethod
    def make(directory: Path, *names: str) -> Path:
        directory.mkdir(parents=True)
        for name in names:
            (directory / name).touch()
        return directory

    def test_none(self, tmp_path: Path) -> None:
        assert find_model(self.SOURCE, tmp_path) is None
        self.make(tmp_path / "Name")
        self.make(tmp_path / "Org/Name/main", "config.json")
        assert find_model(self.SOURCE, tmp_path) is None, "another revision, and a directory without a model"

    def test_one_of_its_name(self, tmp_path: Path) -> None:
        mine = self.make(tmp_path / "Name", "config.json")
        assert find_model(self.SOURCE, tmp_path) == mine

    def test_the_downloaded_one_comes_first(self, tmp_path: Path) -> None:
        self.make(tmp_path / "Name", "config.json")
        downloaded = self.make(tmp_path / "Org/Name/v1", "config.json", BEGUN, WHOLE)
        assert find_model(self.SOURCE, tmp_path) == downloaded

    def test_the_files_of_a_download_are_called_as_it_calls_them(self) -> None:
        assert (BEGUN, WHOLE) == (target.LOCK, target.MARKER)

    def test_one_that_is_not_whole_is_not_it(self, tmp_path: Path) -> None:
        self.make(tmp_path / "Org/Name/v1", "config.json", BEGUN)
        assert find_model(self.SOURCE, tmp_path) is None
