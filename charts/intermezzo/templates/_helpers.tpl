{{- define "intermezzo.selector" -}}
app.kubernetes.io/name: intermezzo
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/component: operator
{{- end }}

{{- define "intermezzo.labels" -}}
{{ include "intermezzo.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/part-of: intermezzo
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version }}
{{- end }}

{{- /* An image by the name of its value. */}}
{{- define "intermezzo.image" -}}
{{- $images := .root.Values.images -}}
{{- with $images.registry }}{{ trimSuffix "/" . }}/{{ end }}{{ get $images .name }}:{{ $images.tag | default .root.Chart.AppVersion }}
{{- end }}
