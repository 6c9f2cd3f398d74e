{{- /* What no schema can check: values that do not go together. Each failure is a sentence that names the value. */ -}}
{{- define "eca.checks" -}}
{{- range tuple "HOST" "HTTP_PORT" "GRPC_PORT" "REPOSITORY" "TRITON_URL" "TRITON_THREADS" "WORKERS" "DRAIN_DELAY_MS" "API_KEYS_FILE" "TLS_CERT" "TLS_KEY" "MANAGEMENT_TOKEN_FILE" }}
{{- if hasKey $.Values.gateway.env (printf "ECA_%s" .) }}
{{- fail (printf "gateway.env: the chart itself sets ECA_%s; take it out, and see gateway.workers, drainDelayMs, secrets, triton.threads and cluster.ipv6 in values.yaml" .) }}
{{- end }}
{{- end }}
{{- range tuple "TARGET" "REPOSITORY" }}
{{- if hasKey $.Values.build.env (printf "ECA_%s" .) }}
{{- fail (printf "build.env: the chart itself sets ECA_%s; take it out, and see build.target in values.yaml" .) }}
{{- end }}
{{- end }}
{{- if and (not .Values.triton.gpus) (contains "nvcr.io/" .Values.triton.image) }}
{{- fail "triton.gpus is 0 and triton.image is NVIDIA's; set triton.image to eca-serve/triton-cpu, which runs on CPUs" }}
{{- end }}
{{- if and .Values.build.enabled (not .Values.triton.gpus) (ne .Values.build.target "onnx") }}
{{- fail (printf "triton.gpus is 0 and build.target %s; set build.target to onnx, which CPUs run" .Values.build.target) }}
{{- end }}
{{- range $part := tuple "gateway" "triton" }}
{{- with get $.Values.autoscaling $part }}
{{- if gt (int .min) (int .max) }}
{{- fail (printf "autoscaling.%s: min %v is above max %v; raise max or lower min" $part .min .max) }}
{{- end }}
{{- end }}
{{- end }}
{{- $cpu := list .Values.gateway.resources.requests.cpu .Values.gateway.resources.limits.cpu | compact }}
{{- if and (ne .Values.autoscaling.kind "none") (not $cpu) }}
{{- fail "autoscaling measures a gateway's load by the cores that it requests; set gateway.resources.requests.cpu, or autoscaling.kind to none" }}
{{- end }}
{{- $metrics := get .Values.gateway.env "ECA_METRICS" | default "on" }}
{{- if and .Values.monitoring.enabled (or (eq $metrics "off") (and (eq $metrics "key") (not .Values.monitoring.apiKey))) }}
{{- fail (printf "monitoring is enabled and ECA_METRICS is %q: Prometheus would be refused; set monitoring.apiKey beside key, or ECA_METRICS to on" $metrics) }}
{{- end }}
{{- end }}
