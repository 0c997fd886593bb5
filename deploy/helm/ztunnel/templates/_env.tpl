{{- /* The container's environment; takes the values in force. */ -}}
{{- define "ztunnel.env" -}}
{{- $istiod := printf "istiod%s.%s.svc:15012" (ternary (printf "-%s" .revision) "" (ne .revision "")) .istioNamespace -}}
- name: CA_ADDRESS
  value: {{ .caAddress | default $istiod | quote }}
- name: XDS_ADDRESS
  value: {{ .xdsAddress | default $istiod | quote }}
{{- if .logAsJson }}
- name: LOG_FORMAT
  value: json
{{- end }}
{{- with .network }}
- name: NETWORK
  value: {{ . | quote }}
{{- end }}
- name: RUST_LOG
  value: {{ .logLevel | quote }}
- name: RUST_BACKTRACE
  value: "1"
- name: ISTIO_META_CLUSTER_ID
  value: {{ .multiCluster.clusterName | default "Kubernetes" | quote }}
- name: INPOD_ENABLED
  value: "true"
- name: TERMINATION_GRACE_PERIOD_SECONDS
  value: {{ .terminationGracePeriodSeconds | quote }}
{{- $fields := list (list "POD_NAME" "metadata.name") (list "POD_NAMESPACE" "metadata.namespace")
  (list "NODE_NAME" "spec.nodeName") (list "INSTANCE_IP" "status.podIP")
  (list "SERVICE_ACCOUNT" "spec.serviceAccountName") }}
{{- range $fields }}
- name: {{ index . 0 }}
  valueFrom:
    fieldRef: {fieldPath: {{ index . 1 }}}
{{- end }}
{{- range $name, $value := .meshConfig.defaultConfig.proxyMetadata }}
- name: {{ $name }}
  value: {{ $value | quote }}
{{- end }}
{{- /* The first is the node's number of CPUs where there is no limit; both count whole CPUs. */}}
{{- $amounts := list (list "ZTUNNEL_CPU_LIMIT" "limits.cpu") }}
{{- if ((.resources).limits).cpu }}
{{- $amounts = append $amounts (list "ZTUNNEL_RESOURCE_CPU_LIMIT" "limits.cpu") }}
{{- end }}
{{- if ((.resources).requests).cpu }}
{{- $amounts = append $amounts (list "ZTUNNEL_RESOURCE_CPU_REQUEST" "requests.cpu") }}
{{- end }}
{{- range $amounts }}
- name: {{ index . 0 }}
  valueFrom:
    resourceFieldRef: {resource: {{ index . 1 }}, divisor: "1"}
{{- end }}
{{- range $name, $value := .env }}
- name: {{ $name }}
  value: {{ $value | quote }}
{{- end }}
{{- if .peerCaCrl.enabled }}
- name: CRL_PATH
  value: /var/run/secrets/istio/crl/ca-crl.pem
{{- end }}
{{- end }}
