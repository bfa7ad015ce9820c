{{- define "ambit.cni.labels" -}}
app.kubernetes.io/name: ambit-cni
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/part-of: ambit
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
istio.io/rev: {{ .Values.global.revision | default "default" | quote }}
{{- end }}

{{- define "ambit.cni.image" -}}
{{- $tag := .Values.global.tag | default .Chart.AppVersion -}}
{{- .Values.image | default (printf "%s/cni:%s" .Values.global.hub $tag) -}}
{{- end }}
