{{- define "ambit.controller.labels" -}}
app.kubernetes.io/name: ambit-controller
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/part-of: ambit
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
istio.io/rev: {{ .Values.global.revision | default "default" | quote }}
{{- end }}

{{- define "ambit.controller.image" -}}
{{- $tag := .Values.global.tag | default .Chart.AppVersion -}}
{{- .Values.image | default (printf "%s/controller:%s" .Values.global.hub $tag) -}}
{{- end }}

{{- define "ambit.controller.waypoint" -}}
{{- $tag := .Values.global.tag | default .Chart.AppVersion -}}
{{- .Values.waypoint.image | default (printf "%s/waypoint:%s" .Values.global.hub $tag) -}}
{{- end }}

{{- /* Ends the names of a revision's objects. */ -}}
{{- define "ambit.controller.revision" -}}
{{- with .Values.global.revision }}-{{ . }}{{ end }}
{{- end }}

{{- define "ambit.controller.name" -}}
ambit-controller{{ include "ambit.controller.revision" . }}
{{- end }}

{{- define "ambit.controller.service" -}}
istiod{{ include "ambit.controller.revision" . }}
{{- end }}

{{- define "ambit.controller.selector" -}}
app: ambit-controller
istio.io/rev: {{ .Values.global.revision | default "default" | quote }}
{{- end }}
