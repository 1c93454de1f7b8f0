{{/* The prefix of all names; short enough for every suffix. */}}
{{- define "strucprune.fullname" -}}
{{- $name := default .Chart.Name .Values.nameOverride -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 40 | trimSuffix "-" -}}
{{- else if contains $name .Release.Name -}}
{{- .Release.Name | trunc 40 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name $name | trunc 40 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}

{{/* Labels that select the pods of a component. They never change: selectors are immutable. */}}
{{- define "strucprune.selectorLabels" -}}
app.kubernetes.io/name: {{ default .root.Chart.Name .root.Values.nameOverride | trunc 63 | trimSuffix "-" }}
app.kubernetes.io/instance: {{ .root.Release.Name }}
{{- with .component }}
app.kubernetes.io/component: {{ . }}
{{- end }}
{{- with .pool }}
strucprune/pool: {{ . }}
{{- end }}
{{- end -}}

{{/* Labels of an object. */}}
{{- define "strucprune.labels" -}}
{{ include "strucprune.selectorLabels" . }}
app.kubernetes.io/version: {{ .root.Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .root.Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .root.Chart.Name .root.Chart.Version | replace "+" "_" }}
{{- with .root.Values.commonLabels }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{- define "strucprune.serviceAccountName" -}}
{{- if .Values.serviceAccount.create -}}
{{- default (include "strucprune.fullname" .) .Values.serviceAccount.name -}}
{{- else -}}
{{- required "serviceAccount.name is needed when serviceAccount.create is false" .Values.serviceAccount.name -}}
{{- end -}}
{{- end -}}

{{/* An image's name. Arguments: root, repository, tag, digest. */}}
{{- define "strucprune.image" -}}
{{- with .root.Values.image.registry }}{{ . | trimSuffix "/" }}/{{ end -}}
{{ .repository }}:{{ .tag }}{{ with .digest }}@{{ . }}{{ end }}
{{- end -}}

{{- define "strucprune.apiImage" -}}
{{- $image := .Values.image.api -}}
{{- include "strucprune.image" (dict "root" . "repository" $image.repository "tag" (default .Chart.AppVersion $image.tag) "digest" $image.digest) -}}
{{- end -}}

{{/* What every pod of the chart has. */}}
{{- define "strucprune.podSpec" -}}
serviceAccountName: {{ include "strucprune.serviceAccountName" . }}
automountServiceAccountToken: false
enableServiceLinks: false
securityContext:
  {{- toYaml .Values.podSecurityContext | nindent 2 }}
{{- with .Values.image.pullSecrets }}
imagePullSecrets:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end -}}

{{/* Scheduling of pods. Argument: the values of a component or pool. */}}
{{- define "strucprune.placement" -}}
{{- with .priorityClassName }}
priorityClassName: {{ . }}
{{- end }}
{{- with .nodeSelector }}
nodeSelector:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .tolerations }}
tolerations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .affinity }}
affinity:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end -}}

{{/* Bytes of a quantity such as 50Gi. */}}
{{- define "strucprune.bytes" -}}
{{- $factors := dict "" 1 "k" 1000 "M" 1000000 "G" 1000000000 "T" 1000000000000 "P" 1000000000000000 "Ki" 1024 "Mi" 1048576 "Gi" 1073741824 "Ti" 1099511627776 "Pi" 1125899906842624 -}}
{{- $number := regexFind "^[0-9]+(\\.[0-9]+)?" (toString .) -}}
{{- $unit := trimPrefix $number (toString .) -}}
{{- if not (hasKey $factors $unit) -}}
{{- fail (printf "%s is no number of bytes" (toString .)) -}}
{{- end -}}
{{- mulf (float64 $number) (float64 (get $factors $unit)) | int64 -}}
{{- end -}}

{{/* The port of the S3 service. */}}
{{- define "strucprune.s3Port" -}}
{{- if .Values.s3.endpointUrl -}}
{{- $url := urlParse .Values.s3.endpointUrl -}}
{{- $port := regexFind ":[0-9]+$" $url.host | trimPrefix ":" -}}
{{- default (ternary "80" "443" (eq $url.scheme "http")) $port -}}
{{- else -}}
443
{{- end -}}
{{- end -}}

{{/* One environment variable from a key of a Secret. Arguments: name, secret, key. */}}
{{- define "strucprune.secretEnv" -}}
- name: {{ .name }}
  valueFrom:
    secretKeyRef:
      name: {{ .secret }}
      key: {{ .key }}
{{- end -}}

{{/* How API, reconciler and workers reach Redis and S3. */}}
{{- define "strucprune.serviceEnv" -}}
{{- if .Values.valkey.enabled }}
{{ include "strucprune.secretEnv" (dict "name" "VALKEY_PASSWORD" "secret" .Values.valkey.existingSecret.name "key" .Values.valkey.existingSecret.key) }}
- name: STRUCPRUNE_REDIS_URL
  value: redis://:$(VALKEY_PASSWORD)@{{ include "strucprune.fullname" . }}-valkey:6379/0
{{- else }}
{{ include "strucprune.secretEnv" (dict "name" "STRUCPRUNE_REDIS_URL" "secret" .Values.redis.existingSecret.name "key" .Values.redis.existingSecret.key) }}
{{- end }}
- name: STRUCPRUNE_STATE_URI
  value: {{ .Values.stateUri | quote }}
{{- with .Values.s3 }}
{{- with .endpointUrl }}
- name: STRUCPRUNE_S3_ENDPOINT_URL
  value: {{ . | quote }}
{{- end }}
- name: STRUCPRUNE_S3_REGION
  value: {{ .region | quote }}
{{- with .addressingStyle }}
- name: STRUCPRUNE_S3_ADDRESSING_STYLE
  value: {{ . }}
{{- end }}
- name: STRUCPRUNE_S3_CHECKSUM_MODE
  value: {{ .checksumMode }}
{{- if .existingSecret.name }}
{{ include "strucprune.secretEnv" (dict "name" "STRUCPRUNE_S3_ACCESS_KEY_ID" "secret" .existingSecret.name "key" .existingSecret.accessKeyIdKey) }}
{{ include "strucprune.secretEnv" (dict "name" "STRUCPRUNE_S3_SECRET_ACCESS_KEY" "secret" .existingSecret.name "key" .existingSecret.secretAccessKeyKey) }}
{{- end }}
{{- end }}
{{- with .Values.limits }}
- name: STRUCPRUNE_LIMITS
  value: {{ toJson . | quote }}
{{- end }}
{{- with .Values.tenantLimits }}
- name: STRUCPRUNE_TENANT_LIMITS
  value: {{ toJson . | quote }}
{{- end }}
{{- if .Values.taskDownloads }}
- name: STRUCPRUNE_TASK_DOWNLOADS
  value: "true"
{{- end }}
{{- with .Values.extraEnv }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{/* How API and workers reach a hub. */}}
{{- define "strucprune.hubEnv" -}}
{{- if .Values.auth.hubRepositories }}
{{- with .Values.hub.endpoint }}
- name: HF_ENDPOINT
  value: {{ . | quote }}
{{- end }}
{{- with .Values.hub.existingSecret }}
{{- if .name }}
{{ include "strucprune.secretEnv" (dict "name" "HF_TOKEN" "secret" .name "key" .tokenKey) }}
{{- end }}
{{- end }}
{{- end }}
{{- end -}}

{{/* Further variables of API and reconciler, which read the same settings. */}}
{{- define "strucprune.apiEnv" -}}
{{ include "strucprune.serviceEnv" . | trim }}
{{- with .Values.auth }}
{{ include "strucprune.secretEnv" (dict "name" "STRUCPRUNE_KEY_PEPPER" "secret" .existingSecret.name "key" .existingSecret.pepperKey) }}
{{- if .existingSecret.apiKeysKey }}
{{ include "strucprune.secretEnv" (dict "name" "STRUCPRUNE_API_KEYS" "secret" .existingSecret.name "key" .existingSecret.apiKeysKey) }}
{{- end }}
{{- with .allowedPrefixes }}
- name: STRUCPRUNE_ALLOWED_PREFIXES
  value: {{ toJson . | quote }}
{{- end }}
{{- with .hubRepositories }}
- name: STRUCPRUNE_HUB_REPOSITORIES
  value: {{ toJson . | quote }}
{{- end }}
{{- end }}
- name: STRUCPRUNE_GPU_MEMORY_BYTES
  value: {{ if .Values.gpuMemory }}{{ include "strucprune.bytes" .Values.gpuMemory | quote }}{{ else }}"null"{{ end }}
- name: STRUCPRUNE_RETENTION_DAYS
  value: {{ toJson .Values.retentionDays | quote }}
{{- with .Values.webhooks }}
{{- if .existingSecret.name }}
{{ include "strucprune.secretEnv" (dict "name" "STRUCPRUNE_WEBHOOK_SECRETS" "secret" .existingSecret.name "key" .existingSecret.key) }}
{{- end }}
{{- with .hosts }}
- name: STRUCPRUNE_WEBHOOK_HOSTS
  value: {{ toJson . | quote }}
{{- end }}
{{- if .allowHttp }}
- name: STRUCPRUNE_WEBHOOK_ALLOW_HTTP
  value: "true"
{{- end }}
{{- end }}
{{- end -}}

{{/* What the reconciler needs to log jobs to MLflow. */}}
{{- define "strucprune.mlflowEnv" -}}
{{- with .Values.mlflow }}
{{- if .trackingUri }}
- name: STRUCPRUNE_MLFLOW_TRACKING_URI
  value: {{ .trackingUri | quote }}
- name: STRUCPRUNE_MLFLOW_EXPERIMENT
  value: {{ .experiment | quote }}
{{- with .existingSecret }}
{{- if and .name .tokenKey }}
{{ include "strucprune.secretEnv" (dict "name" "MLFLOW_TRACKING_TOKEN" "secret" .name "key" .tokenKey) }}
{{- else if .name }}
{{ include "strucprune.secretEnv" (dict "name" "MLFLOW_TRACKING_USERNAME" "secret" .name "key" .usernameKey) }}
{{ include "strucprune.secretEnv" (dict "name" "MLFLOW_TRACKING_PASSWORD" "secret" .name "key" .passwordKey) }}
{{- end }}
{{- end }}
{{- end }}
{{- end }}
{{- end -}}

{{/*
Liveness by the age of a local file: it needs no port, and checks the process, not what it depends on.
Argument: the greatest age in seconds.
*/}}
{{- define "strucprune.heartbeatProbe" -}}
exec:
  command:
    - sh
    - -c
    - test -n "$(find "$STRUCPRUNE_HEARTBEAT_FILE" -newermt '-{{ int . }} seconds')"
{{- end -}}
