{{- define "minisgl-operator.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 63 | trimSuffix "-" }}
{{- end }}

{{- define "minisgl-operator.fullname" -}}
{{- if .Values.fullnameOverride }}
{{- .Values.fullnameOverride | trunc 63 | trimSuffix "-" }}
{{- else }}
{{- $name := include "minisgl-operator.name" . }}
{{- if contains $name .Release.Name }}
{{- .Release.Name | trunc 63 | trimSuffix "-" }}
{{- else }}
{{- printf "%s-%s" .Release.Name $name | trunc 63 | trimSuffix "-" }}
{{- end }}
{{- end }}
{{- end }}

{{- define "minisgl-operator.selectorLabels" -}}
app.kubernetes.io/name: {{ include "minisgl-operator.name" . | quote }}
app.kubernetes.io/instance: {{ .Release.Name | quote }}
app.kubernetes.io/component: operator
{{- end }}

{{- define "minisgl-operator.labels" -}}
{{ include "minisgl-operator.selectorLabels" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" | trunc 63 | trimSuffix "-" }}
{{- end }}

{{- define "minisgl-operator.serviceAccountName" -}}
{{- if .Values.serviceAccount.create }}
{{- default (include "minisgl-operator.fullname" .) .Values.serviceAccount.name }}
{{- else }}
{{- required "serviceAccount.name is needed when serviceAccount.create is false" .Values.serviceAccount.name }}
{{- end }}
{{- end }}

{{- /* The reference of an image, of (dict "image" ... "tag" "the default one"). */}}
{{- define "minisgl-operator.image" -}}
{{- if .image.digest }}
{{- printf "%s@%s" .image.repository .image.digest }}
{{- else }}
{{- printf "%s:%s" .image.repository (default .tag .image.tag) }}
{{- end }}
{{- end }}

{{- define "minisgl-operator.containerSecurityContext" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities:
  drop: [ALL]
{{- end }}

{{- define "minisgl-operator.podSecurityContext" -}}
runAsNonRoot: true
runAsUser: 65532
runAsGroup: 65532
fsGroup: 65532
seccompProfile:
  type: RuntimeDefault
{{- end }}

{{- /* What the operator does within a namespace: in a Role, or in the ClusterRole. */}}
{{- define "minisgl-operator.rules" -}}
- apiGroups: [serving.minisglang.io]
  resources: [minisglangservices]
  verbs: [get, list, watch]
- apiGroups: [serving.minisglang.io]
  resources: [minisglangservices/status]
  verbs: [get, patch, update]
# Asked for where the cluster checks who may set an owner reference that blocks deletion.
- apiGroups: [serving.minisglang.io]
  resources: [minisglangservices/finalizers]
  verbs: [update]
- apiGroups: [apps]
  resources: [deployments, controllerrevisions]
  verbs: [get, list, watch, create, patch, delete]
- apiGroups: [""]
  resources: [services, serviceaccounts, persistentvolumeclaims]
  verbs: [get, list, watch, create, patch, delete]
- apiGroups: [batch]
  resources: [jobs]
  verbs: [get, list, watch, create, patch, delete]
- apiGroups: [policy]
  resources: [poddisruptionbudgets]
  verbs: [get, list, watch, create, patch, delete]
- apiGroups: [networking.k8s.io]
  resources: [networkpolicies]
  verbs: [get, list, watch, create, patch, delete]
# Patched with the cost of their deletion, so that a scale-down takes idle pods first.
- apiGroups: [""]
  resources: [pods]
  verbs: [get, list, watch, patch]
- apiGroups: [""]
  resources: [pods/log]
  verbs: [get]
# Only to see whether a Secret that a service refers to has its key. Secrets cannot be listed.
- apiGroups: [""]
  resources: [secrets]
  verbs: [get]
# Of pods and claims, to say why they wait; and those of a service's transitions.
- apiGroups: [""]
  resources: [events]
  verbs: [get, list, create]
{{- end }}
