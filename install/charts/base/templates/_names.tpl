{{- define "ambit.base.labels" -}}
app.kubernetes.io/name: ambit-base
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/part-of: ambit
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
{{- end }}
