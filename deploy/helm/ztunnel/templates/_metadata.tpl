{{- define "ztunnel.name" -}}
{{ .resourceName | default "ztunnel" }}
{{- end }}

{{- /* Labels of everything, and of the pods. */ -}}
{{- define "ztunnel.labels" -}}
app.kubernetes.io/name: ztunnel
app.kubernetes.io/managed-by: {{ .Release.Service | quote }}
app.kubernetes.io/instance: {{ .Release.Name | quote }}
app.kubernetes.io/part-of: istio
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" | trunc 63 | trimSuffix "-" }}
{{- end }}

{{- /* Labels and annotations of what the values may decorate; takes a list of all and the values. */ -}}
{{- define "ztunnel.decoration" -}}
{{- $values := index . 1 -}}
labels:
  {{- include "ztunnel.labels" (index . 0) | nindent 2 }}
  {{- with $values.labels }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
{{- include "ztunnel.annotations" $values | nindent 0 }}
{{- end }}

{{- define "ztunnel.annotations" -}}
{{- $annotations := deepCopy .annotations }}
{{- if .revision }}
{{- $_ := set $annotations "istio.io/rev" .revision }}
{{- end -}}
annotations: {{ toJson $annotations }}
{{- end }}
