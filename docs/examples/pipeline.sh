#!/usr/bin/env bash
# The whole life of a job with curl and jq:   pipeline.sh job.json OUTPUT
# Needs STRUCPRUNE_URL, STRUCPRUNE_API_KEY, curl, jq and sha256sum.
set -euo pipefail
job_file=$1 output=$2
jobs=$STRUCPRUNE_URL/v1/pruning-jobs

# The key goes in by a file descriptor: command lines can be read by everybody on a machine.
api() { curl -sS --fail-with-body -K <(printf 'header = "Authorization: Bearer %s"\n' "$STRUCPRUNE_API_KEY") "$@"; }

# What the job is made of is its idempotency key: run again, this finds the same job.
key=$(sha256sum "$job_file" | cut -d' ' -f1)
job=$(api -X POST "$jobs" -H 'Content-Type: application/json' -H "Idempotency-Key: $key" \
  --data-binary @"$job_file" | jq -r .id)
echo "submitted $job" >&2

while :; do
  answer=$(api -H 'Prefer: wait=30' "$jobs/$job")
  state=$(jq -r .state <<<"$answer")
  jq -r '"\(.state) \(.progress.phase // "") \((.progress.fraction // 0) * 100 | floor)%"' <<<"$answer" >&2
  case $state in
    succeeded) break ;;
    failed | cancelled) jq .error <<<"$answer" >&2; exit 1 ;;
  esac
done

mkdir -p "$output"
api "$jobs/$job/artifacts?presign=true" |
  jq -r '.data[] | [.sha256, .name, .url] | @tsv' |
  while IFS=$'\t' read -r sha256 name url; do
    mkdir -p "$output/$(dirname "$name")"
    curl -sS --fail -o "$output/$name" "$url"
    echo "$sha256  $output/$name" | sha256sum --check --quiet
  done
echo "$output"
