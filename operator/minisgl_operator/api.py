"""The resource that people write: the typed spec and status of a MiniSGLangService.

The CRD is generated from these classes (crd.py), so a field, its default, its bounds and its rules are said here
and nowhere else. Rules in CEL stand beside the class they are about; the API server evaluates them, and local mode
does (validate.py). Attributes are in snake_case, the fields of the resource in camelCase.
"""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, WithJsonSchema
from pydantic.alias_generators import to_camel

GROUP = "serving.minisglang.io"
VERSION = "v1alpha1"
API_VERSION = f"{GROUP}/{VERSION}"
KIND = "MiniSGLangService"
PLURAL = "minisglangservices"
SINGULAR = "minisglangservice"
SHORT_NAME = "msgl"

MAX_NAME = 40
"""Characters of a service's name: what children add to it must fit a label, 63."""

# Strings of Kubernetes. Every one has a bound, without which the API server cannot bound what a rule costs.
Name = Annotated[str, Field(min_length=1, max_length=253, pattern=r"^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$")]
SecretKey = Annotated[str, Field(min_length=1, max_length=253, pattern=r"^[-._a-zA-Z0-9]+$")]
ShortText = Annotated[str, Field(max_length=256)]
Text = Annotated[str, Field(max_length=4096)]
QUANTITY = r"^([0-9]+(\.[0-9]*)?|\.[0-9]+)(([KMGTPE]i)|[numkMGTPE]|[eE][-+]?[0-9]+)?$"
Quantity = Annotated[
    str | int,
    WithJsonSchema(
        {
            "anyOf": [{"type": "integer"}, {"type": "string"}],
            "x-kubernetes-int-or-string": True,
            "pattern": QUANTITY,
            "maxLength": 32,
            "minimum": 0,
        }
    ),
]
Raw = Annotated[dict[str, Any], WithJsonSchema({"type": "object", "x-kubernetes-preserve-unknown-fields": True})]
"""A fragment of Kubernetes' own API that is passed on; the API server checks it when the child is applied."""


class Rule(BaseModel):
    """A rule in CEL over `self`, and over `oldSelf` for a change."""

    rule: str
    message: str


class Fields(BaseModel):
    """An object of the resource, whose `rules` go into its schema."""

    model_config = ConfigDict(
        alias_generator=to_camel, populate_by_name=True, extra="forbid", frozen=True, use_attribute_docstrings=True
    )
    rules: ClassVar[tuple[Rule, ...]] = ()


class SecretRef(Fields):
    """A Secret of the service's namespace."""

    name: Name


class TokenRef(Fields):
    """The key of a Secret that holds an access token of the hub."""

    name: Name
    key: SecretKey = "HF_TOKEN"


class ApiKeyRef(Fields):
    """The key of a Secret that holds what clients must send as `Authorization: Bearer KEY`."""

    name: Name
    key: SecretKey = "api-key"


class HuggingFace(Fields):
    """A repository on the Hugging Face Hub, downloaded by the pods or into `cache`."""

    repo: Annotated[
        str,
        Field(
            min_length=1,
            max_length=200,
            pattern=r"^[A-Za-z0-9][-A-Za-z0-9._]*(/[A-Za-z0-9][-A-Za-z0-9._]*)?$",
            description="Repository on the Hugging Face Hub, such as Qwen/Qwen3-14B.",
        ),
    ]
    revision: Annotated[
        str,
        Field(
            min_length=1,
            max_length=200,
            pattern=r"^[A-Za-z0-9][-A-Za-z0-9._]*(/[A-Za-z0-9][-A-Za-z0-9._]*)*$",
            description="Branch, tag or commit.",
        ),
    ] = "main"
    token_secret_ref: Annotated[TokenRef | None, Field(description="Access token for gated repositories.")] = None


RELATIVE_PATH = r"^[^/]+(/[^/]+)*$"
SubPath = Annotated[str, Field(min_length=1, max_length=512, pattern=RELATIVE_PATH)]


class ClaimSource(Fields):
    """A volume that holds the model; mounted read-only."""

    rules = (
        Rule(
            rule="!has(self.subPath) || !self.subPath.split('/').exists(part, part == '..')",
            message="subPath must not contain '..'",
        ),
    )
    claim_name: Name
    sub_path: Annotated[SubPath | None, Field(description="Directory of the model within the volume.")] = None


class S3(Fields):
    """Not supported by this version."""

    uri: Annotated[str, Field(min_length=6, max_length=1024, pattern=r"^s3://.+")]
    endpoint: ShortText | None = None
    secret_ref: SecretRef | None = None


class Oci(Fields):
    """An image that holds the model, mounted as a volume."""

    image: Annotated[
        str,
        Field(
            min_length=1,
            max_length=512,
            description="Image whose root is the model's directory; mounted as a volume.",
        ),
    ]


class Model(Fields):
    """Where the model comes from, and its name in the API."""

    rules = (
        Rule(
            rule="[has(self.huggingFace), has(self.pvc), has(self.s3), has(self.oci)]"
            ".filter(given, given).size() == 1",
            message="must have exactly one source: huggingFace, pvc, s3 or oci",
        ),
    )
    hugging_face: HuggingFace | None = None
    pvc: ClaimSource | None = None
    s3: S3 | None = None
    oci: Oci | None = None
    served_name: Annotated[
        str | None,
        Field(
            min_length=1,
            max_length=200,
            pattern=r"^[^$\s]+$",  # Kubernetes would expand "$(NAME)" in an argument
            description="Name in the OpenAI API; the resource's own by default.",
        ),
    ] = None


class Cache(Fields):
    """A volume that keeps a downloaded model: one that is made here (size), or one that exists (existingClaim)."""

    rules = (
        Rule(
            rule="has(self.existingClaim) != has(self.size)",
            message="must have either size (a new volume) or existingClaim, not both",
        ),
        Rule(
            rule="!has(self.existingClaim) || !has(self.storageClassName)",
            message="storageClassName belongs to a new volume (size), not to existingClaim",
        ),
    )
    size: Quantity | None = None
    """Of a new volume, such as 40Gi."""
    storage_class_name: Name | None = None
    """Of a new volume; the cluster's default without it."""
    access_mode: Literal["ReadWriteOnce", "ReadWriteOncePod", "ReadWriteMany"] = "ReadWriteOnce"
    """ReadWriteMany lets replicas run on several nodes."""
    existing_claim: Name | None = None
    """A claim that is there already."""
    reclaim_policy: Annotated[
        Literal["Retain", "Delete"],
        Field(description="Whether a volume that was made here outlives the service."),
    ] = "Retain"


class Parallelism(Fields):
    """How one replica is split."""

    tensor: Annotated[int, Field(ge=1, le=16, description="GPUs that one replica is split over.")] = 1


OWNED_FLAGS = (
    "model",
    "revision",
    "served-model-name",
    "host",
    "port",
    "api-key",
    "tp",
    "device",
    "dtype",
    "quantization",
    "kv-cache-dtype",
    "max-seq-len",
    "max-running-requests",
    "memory-ratio",
    "attn",
    "cache",
    "page-size",
    "cuda-graph-max-batch",
    "max-prefill-length",
    "drain-grace",
    "drain-timeout",
    "shell",
    "help",
    "version",
)
"""Options of the worker that other fields set, or that would keep it from serving."""


class Engine(Fields):
    """Options of the worker; what is not given is the worker's own choice."""

    rules = (
        Rule(
            rule="!has(self.extraArgs) || !self.extraArgs.exists(arg, "
            f"arg.matches('^(--({'|'.join(OWNED_FLAGS)})(=.*)?|-h)$'))",
            message=f"extraArgs must not hold options that the operator sets: {', '.join(OWNED_FLAGS)}",
        ),
        Rule(
            rule="!has(self.extraArgs) || !self.extraArgs.exists(arg, arg.startsWith('--ssl-'))",
            message="extraArgs must not turn on TLS: the pod's probes, its Service and the metrics speak plain "
            "HTTP; end TLS in front of the Service, at an Ingress, a Gateway or a mesh",
        ),
        Rule(
            rule="self.device != 'cpu' || (self.quantization != 'fp8' && self.kvCacheDtype != 'fp8')",
            message="quantization and kvCacheDtype: fp8 needs a GPU, and device is cpu",
        ),
    )
    device: Literal["cuda", "cpu"] = "cuda"
    """cuda: one GPU for each rank. cpu: none."""
    dtype: Literal["auto", "bfloat16", "float16", "float32"] = "auto"
    """auto: the checkpoint's own on a GPU, float32 on a CPU."""
    quantization: Literal["none", "fp8"] = "none"
    """fp8: the linear layers' weights are rounded to 8 bits when they are loaded."""
    kv_cache_dtype: Literal["auto", "fp8"] = "auto"
    """fp8: keys and values are kept in 8 bits, so that twice as many fit. auto: in dtype."""
    max_sequence_length: Annotated[int, Field(ge=2, le=16777216)] | None = None
    """Tokens of the longest request, prompt and answer together."""
    max_running_requests: Annotated[int, Field(ge=1, le=65536)] | None = None
    """Requests that run at once."""
    memory_ratio: Annotated[float, Field(gt=0, le=1)] | None = None
    """Share of the free memory for model and KV pool."""
    attention_backend: Annotated[str, Field(max_length=64, pattern=r"^[a-z_0-9]+(,[a-z_0-9]+)?$")] | None = None
    """One name, or one for prefill and one for decode: `a,b`."""
    cache_type: Literal["radix", "naive"] = "radix"
    """Prefix cache: a radix tree, or none."""
    page_size: Annotated[int, Field(ge=1, le=1024)] | None = None
    """Tokens of one page of the KV pool."""
    cuda_graph_max_batch: Annotated[int, Field(ge=0, le=4096)] | None = None
    """Requests of the largest decode step that runs as a CUDA graph; 0: none does."""
    max_prefill_length: Annotated[int, Field(ge=1, le=16777216)] | None = None
    """Tokens of one step; longer prompts are read in chunks."""
    extra_args: Annotated[
        list[Annotated[str, Field(min_length=1, max_length=512)]],
        Field(max_length=32, description="More options for the worker, as its --help lists them."),
    ] = []


class Image(Fields):
    """The worker's image; what is not given comes from the operator's own setting."""

    repository: (
        Annotated[
            str,
            Field(
                min_length=1,
                max_length=255,
                pattern=r"^([a-zA-Z0-9.-]+(:[0-9]+)?/)?[a-z0-9][-a-z0-9._]*(/[a-z0-9][-a-z0-9._]*)*$",
                description="Without tag and digest.",
            ),
        ]
        | None
    ) = None
    tag: Annotated[str, Field(min_length=1, max_length=128, pattern=r"^[A-Za-z0-9_][-A-Za-z0-9._]*$")] | None = (
        None
    )
    digest: Annotated[str, Field(max_length=71, pattern=r"^sha256:[a-f0-9]{64}$")] | None = None
    pull_policy: Literal["Always", "IfNotPresent", "Never"] | None = None


StringMap = Annotated[dict[str, ShortText], Field(max_length=64)]


class Resources(Fields):
    """Of the worker's container, as in a pod; GPUs are added by the operator."""

    requests: Annotated[dict[str, Quantity], Field(max_length=16)] = {}
    limits: Annotated[dict[str, Quantity], Field(max_length=16)] = {}


class Scheduling(Fields):
    """Where pods may run, as in a pod's spec."""

    node_selector: StringMap = {}
    tolerations: Annotated[list[Raw], Field(max_length=32)] = []
    affinity: Raw | None = None
    topology_spread: Annotated[list[Raw], Field(max_length=16)] = []
    priority_class_name: Name | None = None
    runtime_class_name: Name | None = None


class EnvVar(Fields):
    """An environment variable, as in a pod's spec."""

    rules = (
        Rule(
            rule="!has(self.value) || !has(self.valueFrom)",
            message="must have either value or valueFrom, not both",
        ),
    )
    name: Annotated[str, Field(min_length=1, max_length=256, pattern=r"^[-._a-zA-Z][-._a-zA-Z0-9]*$")]
    value: Text | None = None
    value_from: Raw | None = None


class Probes(Fields):
    """How long a pod may take to be ready."""

    startup_timeout_seconds: Annotated[int, Field(ge=10, le=86400)] = 1800
    """After so long without being ready, the worker is restarted."""


class Rollout(Fields):
    """How a changed spec takes over."""

    rules = (
        Rule(
            rule="self.progressDeadlineSeconds > self.minReadySeconds",
            message="progressDeadlineSeconds must be greater than minReadySeconds",
        ),
    )
    strategy: Annotated[
        Literal["Auto", "Surge", "InPlace", "Recreate"],
        Field(
            description="Auto: one replica surges, and falls back in place when no GPU is free; "
            "several are replaced one by one."
        ),
    ] = "Auto"
    surge_timeout_seconds: Annotated[int, Field(ge=0, le=86400)] = 60
    """How long a surge waits for a free GPU before Auto falls back in place."""
    min_ready_seconds: Annotated[int, Field(ge=0, le=3600)] = 0
    """How long a pod must be ready before it counts."""
    drain_timeout_seconds: Annotated[int, Field(ge=0, le=86400)] = 120
    """How long requests in flight may go on in a pod that ends."""
    progress_deadline_seconds: Annotated[int, Field(ge=10, le=172800)] = 2400
    """A rollout without progress for so long is reported."""


class Autoscaling(Fields):
    """Not supported by this version."""

    rules = (
        Rule(
            rule="self.minReplicas <= self.maxReplicas",
            message="minReplicas must not be greater than maxReplicas",
        ),
    )
    min_replicas: Annotated[int, Field(ge=0, le=1000)] = 1
    max_replicas: Annotated[int, Field(ge=1, le=1000)]
    metric: Literal["waitingRequests", "runningRequests", "kvUsage"] = "waitingRequests"
    target: Annotated[int, Field(ge=1, le=100000)] = 4
    provider: Literal["KEDA", "HPA"] = "KEDA"
    behavior: Raw | None = None


class Auth(Fields):
    """Who may ask."""

    api_key_secret_ref: ApiKeyRef


class Tls(Fields):
    """Not supported by this version."""

    secret_name: Name


class NetworkPolicy(Fields):
    """Which pods may connect, where the cluster's network enforces NetworkPolicies."""

    enabled: bool = False
    """Whether there is one."""
    allow_from: Annotated[
        list[Raw],
        Field(
            max_length=32,
            description="NetworkPolicyPeers that may connect; pods of the same namespace by default.",
        ),
    ] = []


class Service(Fields):
    """The Service in front of the pods."""

    type: Literal["ClusterIP", "NodePort", "LoadBalancer"] = "ClusterIP"
    port: Annotated[int, Field(ge=1, le=65535)] = 80
    """Port of the URL; the pods listen on 8000."""
    annotations: StringMap = {}


class Monitoring(Fields):
    """Not supported by this version."""

    pod_monitor: bool = False
    labels: StringMap = {}


class Gateway(Fields):
    """Not supported by this version."""

    inference_pool: bool = False
    parent_ref: Raw | None = None


OWNED_KEY = f"key.startsWith('{GROUP}/') || key.startsWith('app.kubernetes.io/')"


class Spec(Fields):
    rules = (
        Rule(
            rule="!has(self.cache) || has(self.model.huggingFace) || has(self.model.s3)",
            message="cache keeps a downloaded model: it needs model.huggingFace or model.s3",
        ),
        Rule(
            rule="!has(oldSelf.cache) || !has(oldSelf.cache.size) || "
            "(has(self.model.huggingFace) == has(oldSelf.model.huggingFace)"
            " && has(self.model.s3) == has(oldSelf.model.s3)"
            " && (!has(self.model.huggingFace) || (self.model.huggingFace.repo == oldSelf.model.huggingFace.repo"
            " && self.model.huggingFace.revision == oldSelf.model.huggingFace.revision))"
            " && (!has(self.model.s3) || self.model.s3.uri == oldSelf.model.s3.uri))",
            message="the model's source is immutable while a managed cache (cache.size) is set: "
            "make another service",
        ),
        Rule(
            rule="!has(self.env) || !self.env.exists(item, item.name.startsWith('MINISGL_API_KEY'))",
            message="env must not set MINISGL_API_KEY or MINISGL_API_KEY_FILE: use auth.apiKeySecretRef",
        ),
        Rule(
            rule=f"!has(self.podLabels) || !self.podLabels.exists(key, {OWNED_KEY})",
            message=f"podLabels must not use the prefixes {GROUP}/ and app.kubernetes.io/",
        ),
        Rule(
            rule="!has(self.podAnnotations) || !self.podAnnotations.exists(key, "
            f"key.startsWith('{GROUP}/') || key == 'controller.kubernetes.io/pod-deletion-cost')",
            message=f"podAnnotations must not use the prefix {GROUP}/ or "
            "controller.kubernetes.io/pod-deletion-cost",
        ),
    )
    model: Model
    cache: Cache | None = None
    replicas: Annotated[int, Field(ge=0, le=1000)] = 1
    """Pods, each with GPUs of its own."""
    parallelism: Parallelism = Parallelism()
    engine: Engine = Engine()
    image: Image = Image()
    image_pull_secrets: Annotated[list[SecretRef], Field(max_length=16)] = []
    """For the worker's image."""
    resources: Resources | None = None
    gpu_resource_name: Annotated[
        str, Field(min_length=1, max_length=253, pattern=r"^[a-z0-9.-]+/[-a-zA-Z0-9._]+$")
    ] = "nvidia.com/gpu"
    """What nodes call their GPUs."""
    shared_memory: Annotated[
        Quantity | None, Field(description="Size of /dev/shm; 1Gi for each GPU by default.")
    ] = None
    scheduling: Scheduling = Scheduling()
    env: Annotated[list[EnvVar], Field(max_length=64)] = []
    """Of the worker and of the download."""
    env_from: Annotated[list[Raw], Field(max_length=16)] = []
    """Of the worker and of the download."""
    pod_labels: StringMap = {}
    """More labels of worker pods."""
    pod_annotations: StringMap = {}
    """Annotations of worker pods."""
    probes: Probes = Probes()
    rollout: Rollout = Rollout()
    autoscaling: Autoscaling | None = None
    auth: Auth | None = None
    tls: Tls | None = None
    network_policy: NetworkPolicy = NetworkPolicy()
    service: Service = Service()
    monitoring: Monitoring | None = None
    gateway: Gateway | None = None
    suspend: bool = False
    """No pods, and all else stays: the GPUs are free."""


class Condition(Fields):
    type: Annotated[str, Field(max_length=64)]
    status: Literal["True", "False", "Unknown"]
    observed_generation: int | None = None
    last_transition_time: Annotated[str, Field(max_length=64)]
    reason: Annotated[str, Field(max_length=128)]
    message: Annotated[str, Field(max_length=4096)] = ""


class CacheStatus(Fields):
    phase: Annotated[str, Field(max_length=32)]
    bytes_done: int | None = None
    bytes_total: int | None = None


class Startup(Fields):
    """Seconds of the start of the pod that became ready last, as its worker measured them."""

    pod: ShortText
    download_seconds: float | None = None
    load_seconds: float | None = None
    warmup_seconds: float | None = None


class Status(Fields):
    observed_generation: int | None = None
    url: Text | None = None
    """Base URL of the OpenAI API within the cluster."""
    served_model: ShortText | None = None
    """The model's name in the API."""
    selector: Text | None = None
    replicas: int | None = None
    ready_replicas: int | None = None
    updated_replicas: int | None = None
    """Pods of the newest revision."""
    current_revision: ShortText | None = None
    """Of the pod template that the Deployment has."""
    worker_image: Text | None = None
    """Pinned until the spec asks for another."""
    cache: CacheStatus | None = None
    last_startup: Startup | None = None
    conditions: Annotated[list[Condition], Field(max_length=16)] = []


NAME_RULE = Rule(
    rule=f"self.metadata.name.size() <= {MAX_NAME} && self.metadata.name.matches('^[a-z]([-a-z0-9]*[a-z0-9])?$')",
    message=f"metadata.name must be at most {MAX_NAME} characters: lower-case letters, digits and '-', "
    "first a letter",
)

PRINTER_COLUMNS: tuple[dict[str, Any], ...] = (
    {"name": "Ready", "type": "string", "jsonPath": '.status.conditions[?(@.type=="Ready")].status'},
    {"name": "Reason", "type": "string", "jsonPath": '.status.conditions[?(@.type=="Ready")].reason'},
    {"name": "Model", "type": "string", "jsonPath": ".status.servedModel"},
    {"name": "TP", "type": "integer", "jsonPath": ".spec.parallelism.tensor"},
    {"name": "Replicas", "type": "integer", "jsonPath": ".status.readyReplicas"},
    {"name": "Age", "type": "date", "jsonPath": ".metadata.creationTimestamp"},
    {"name": "URL", "type": "string", "jsonPath": ".status.url", "priority": 1},
    {"name": "Image", "type": "string", "jsonPath": ".status.workerImage", "priority": 1},
    {"name": "Cache", "type": "string", "jsonPath": ".status.cache.phase", "priority": 1},
)
