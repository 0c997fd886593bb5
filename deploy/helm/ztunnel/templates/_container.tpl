{{- /* The container and its volumes; both take the values in force. */ -}}
{{- define "ztunnel.container" -}}
- name: istio-proxy
  {{- if contains "/" .image }}
  image: {{ .image | quote }}
  {{- else }}
  image: "{{ .hub }}/{{ .image | default "ztunnel" }}:{{ .tag }}{{ with .variant }}-{{ . }}{{ end }}"
  {{- end }}
  {{- with .imagePullPolicy }}
  imagePullPolicy: {{ . }}
  {{- end }}
  args: [proxy, ztunnel]
  ports:
    - {name: ztunnel-stats, containerPort: 15020, protocol: TCP}
  readinessProbe:
    httpGet: {port: 15021, path: /healthz/ready}
  resources: {{ include "ztunnel.resources" .resources }}
  securityContext:
    runAsUser: 0
    runAsGroup: 1337
    runAsNonRoot: false
    privileged: false
    readOnlyRootFilesystem: true
    allowPrivilegeEscalation: true # SYS_ADMIN implies it
    capabilities:
      drop: [ALL]
      add:
        - NET_ADMIN # the mark of its packets, transparent sockets
        - SYS_ADMIN # opens sockets in the network namespaces of pods
        - NET_RAW # connects with the client's own address
    {{- with .seLinuxOptions }}
    seLinuxOptions:
      {{- toYaml . | nindent 6 }}
    {{- end }}
  env:
    {{- include "ztunnel.env" . | nindent 4 }}
  volumeMounts:
    - {name: istiod-ca-cert, mountPath: /var/run/secrets/istio}
    - {name: istio-token, mountPath: /var/run/secrets/tokens}
    - {name: cni-ztunnel-sock-dir, mountPath: /var/run/ztunnel}
    - {name: tmp, mountPath: /tmp}
    {{- if .peerCaCrl.enabled }}
    - {name: crl-volume, mountPath: /var/run/secrets/istio/crl, readOnly: true}
    {{- end }}
    {{- with .volumeMounts }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
{{- end }}

{{- /* Requests and limits without those that were set to nothing, as one line of JSON. */ -}}
{{- define "ztunnel.resources" -}}
{{- $kept := dict }}
{{- range $kind, $amounts := pick (. | default dict) "requests" "limits" }}
  {{- range $name, $amount := $amounts }}
    {{- if $amount }}
      {{- $_ := set $kept $kind (get $kept $kind | default dict | merge (dict $name $amount)) }}
    {{- end }}
  {{- end }}
{{- end }}
{{- toJson $kept }}
{{- end }}

{{- define "ztunnel.volumes" -}}
- name: istiod-ca-cert
  {{- if eq (get .env "ENABLE_CLUSTER_TRUST_BUNDLE_API" | toString) "true" }}
  projected:
    sources:
      - clusterTrustBundle:
          name: istio.io:istiod-ca:{{ .trustBundleName | default "root-cert" }}
          path: root-cert.pem
  {{- else }}
  configMap:
    name: {{ .trustBundleName | default "istio-ca-root-cert" }}
  {{- end }}
- name: istio-token
  projected:
    sources:
      - serviceAccountToken: {audience: istio-ca, expirationSeconds: 43200, path: istio-token}
- name: cni-ztunnel-sock-dir
  hostPath:
    path: /var/run/ztunnel
    type: DirectoryOrCreate # the agent may come later
- name: tmp
  emptyDir: {}
{{- if .peerCaCrl.enabled }}
- name: crl-volume
  configMap: {name: istio-ca-crl, optional: true}
{{- end }}
{{- with .volumes }}
{{- toYaml . | nindent 0 }}
{{- end }}
{{- end }}
