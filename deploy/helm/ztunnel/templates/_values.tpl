{{- /*
The values in force, as YAML: each template begins with
  {{- $values := include "ztunnel.values" . | fromYaml }}
*/ -}}
{{- define "ztunnel.values" -}}
{{- $given := omit .Values "_internal_defaults_do_not_set" }}
{{- $global := $given.global | default dict }}
{{- $presets := .Files.Get "files/presets.yaml" | fromYaml }}
{{- $values := deepCopy .Values._internal_defaults_do_not_set }}
{{- range $kind := list "profile" "compatibilityVersion" "platform" }}
  {{- with coalesce (get $given $kind) (get $global $kind) }}
    {{- $known := get $presets $kind }}
    {{- if not (hasKey $known (toString .)) }}
      {{- fail (printf "unknown %s %q; there are: %s" $kind (toString .) (keys $known | sortAlpha | join ", ")) }}
    {{- end }}
    {{- $values = mustMergeOverwrite $values (get $known (toString .) | deepCopy) }}
  {{- end }}
{{- end }}
{{- mustMergeOverwrite $values (deepCopy $global) (deepCopy $given) | toYaml }}
{{- end }}
