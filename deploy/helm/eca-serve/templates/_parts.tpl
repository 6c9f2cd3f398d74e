{{- /* Short enough for the longest that is made of it, a build job's: names have 63 characters at most. */ -}}
{{- define "eca.name" -}}
{{ (contains "eca-serve" .Release.Name | ternary .Release.Name (printf "%s-eca-serve" .Release.Name)) | trunc 48 | trimSuffix "-" }}
{{- end }}

{{- /* Labels that select: never change them, a Deployment cannot. Call with (list $ "component"). */ -}}
{{- define "eca.selector" -}}
app.kubernetes.io/name: eca-serve
app.kubernetes.io/instance: {{ (index . 0).Release.Name }}
app.kubernetes.io/component: {{ index . 1 }}
{{- end }}

{{- define "eca.labels" -}}
{{ include "eca.selector" . }}
app.kubernetes.io/version: {{ (index . 0).Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ (index . 0).Release.Service }}
helm.sh/chart: eca-serve-{{ (index . 0).Chart.Version }}
{{- end }}

{{- define "eca.claim" -}}
{{ .Values.models.existingClaim | default (printf "%s-models" (include "eca.name" .)) }}
{{- end }}

{{- define "eca.pod-security" -}}
runAsNonRoot: true
runAsUser: 10001
runAsGroup: 10001
fsGroup: 10001
fsGroupChangePolicy: OnRootMismatch
seccompProfile: {type: RuntimeDefault}
{{- end }}

{{- define "eca.pull-secrets" -}}
{{- range .Values.cluster.imagePullSecrets }}
- name: {{ . }}
{{- else -}}
[]
{{- end }}
{{- end }}

{{- define "eca.container-security" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities: {drop: [ALL]}
{{- end }}

{{- /* Nothing starts before there is a model: a Triton without a repository ends, and is tried again ever more rarely.
A version appears whole, by one rename, so the first file means that there is one. Called with an image that has sh. */ -}}
{{- define "eca.models-first" -}}
- name: models
  image: {{ . }}
  command: [sh, -c, "until ls /models/repository/*/config.pbtxt >/dev/null 2>&1; do sleep 2; done"]
  securityContext: {{- include "eca.container-security" . | nindent 4 }}
  resources:
    requests: {cpu: 10m, memory: 16Mi}
    limits: {memory: 64Mi}
  volumeMounts:
    - {name: models, mountPath: /models, readOnly: true}
{{- end }}

{{- /* One number for the Tritons and for the gateways, whose batches follow it. */ -}}
{{- define "eca.threads" -}}
{{- if and .Values.triton.threads (not .Values.triton.gpus) -}}
- {name: ECA_TRITON_THREADS, value: {{ .Values.triton.threads | quote }}}
{{- end }}
{{- end }}

{{- /* Over zones and hosts, where that can be had. */ -}}
{{- define "eca.spread" -}}
{{- range tuple "topology.kubernetes.io/zone" "kubernetes.io/hostname" }}
- maxSkew: 1
  topologyKey: {{ . }}
  whenUnsatisfiable: ScheduleAnyway
  labelSelector:
    matchLabels: {{- include "eca.selector" $ | nindent 6 }}
{{- end }}
{{- end }}
