{{/* Kubernetes' own labels for the parts of a release. Selectors use only `app`. */}}
{{- define "sidebake.labels" -}}
app.kubernetes.io/name: sidebake
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ .Chart.Name }}-{{ .Chart.Version }}
{{- end }}

{{/*
Labels and annotations of an object. Takes a dict: `root`, and if it has them, `labels` and `annotations`. More specific ones
replace common ones.
*/}}
{{- define "sidebake.metadata" -}}
{{- $ofRelease := include "sidebake.labels" .root | fromYaml -}}
labels: {{- merge (dict) (.labels | default dict) .root.Values.commonLabels $ofRelease | toYaml | nindent 2 }}
{{- with merge (dict) (.annotations | default dict) .root.Values.commonAnnotations }}
annotations: {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}

{{- define "sidebake.image" -}}
{{- with .Values.image -}}
{{ .repository }}{{ if .digest }}@{{ .digest }}{{ else }}:{{ .tag | default $.Chart.AppVersion }}{{ end }}
{{- end }}
{{- end }}

{{- define "sidebake.account" -}}
{{ .Values.serviceAccount.name | default .Release.Name }}
{{- end }}

{{- define "sidebake.bootstrapAccount" -}}
{{ .Values.bootstrapServiceAccount.name | default (printf "%s-bootstrap" .Release.Name) }}
{{- end }}

{{- define "sidebake.configMap" -}}
{{ .Values.existingConfigMap | default .Release.Name }}
{{- end }}

{{/* The name of objects of the whole cluster, which must differ between releases of the same name. */}}
{{- define "sidebake.clusterName" -}}
{{ list .Release.Namespace .Release.Name | uniq | join "-" }}-deletion-cost
{{- end }}

{{/* What the pods of the worker and of the Job have in common, without what only the worker has. */}}
{{- define "sidebake.pod" -}}
{{- with .Values.imagePullSecrets }}
imagePullSecrets: {{- toYaml . | nindent 0 }}
{{- end }}
{{- with .Values.nodeSelector }}
nodeSelector: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.tolerations }}
tolerations: {{- toYaml . | nindent 0 }}
{{- end }}
{{- end }}

{{- define "sidebake.container" -}}
name: sidebake
image: {{ include "sidebake.image" . }}
{{- with .Values.image.pullPolicy }}
imagePullPolicy: {{ . }}
{{- end }}
securityContext:
  allowPrivilegeEscalation: false
  readOnlyRootFilesystem: true
  capabilities: {drop: [ALL]}
{{- end }}
