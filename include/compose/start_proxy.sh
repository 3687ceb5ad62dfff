#!/bin/sh
# nginx with the certificate, the names and the password that the environment tells. Addresses are the services' unless told.
set -eu
umask 077
here="$(dirname "$0")"
folder="${PROXY_FOLDER:-/tmp/proxy}"
mkdir -p "$folder"
printf '%s' "$TLS_CERTIFICATE" | base64 -d > "$folder/certificate.pem"
printf '%s' "$TLS_KEY" | base64 -d > "$folder/key.pem"
printf 'admin:{PLAIN}%s\n' "$WATCH_PASSWORD" > "$folder/people"

# lines VALUE: one for each word between commas
lines() { printf '%s' "$1" | tr ',' '\n' | while read -r word || [ -n "$word" ]; do
  case "$word" in *:*) word="[$word]" ;; esac
  printf '"%s" 1;\n' "$word"
done; }
lines "$ADO_HOSTS" > "$folder/hosts.map"
lines "$REGISTRARS" > "$folder/registrars.map"

put() { words="${words:-} -e s|@$1@|$2|g"; }
put FOLDER "$folder"
put LISTEN "${PROXY_LISTEN:-0.0.0.0}"
put RESOLVER "${PROXY_RESOLVER:-127.0.0.11}"
put AIRFLOW "${PROXY_AIRFLOW:-airflow-api-server:8080}"
put MLFLOW "${PROXY_MLFLOW:-mlflow:5000}"
put STORE "${PROXY_STORE:-store:8333}"
put GRAFANA "${PROXY_GRAFANA:-grafana:3000}"
put PROMETHEUS "${PROXY_PROMETHEUS:-prometheus:9090}"
put ALERTMANAGER "${PROXY_ALERTMANAGER:-alertmanager:9093}"
put AIRFLOW_DOOR "${AIRFLOW_DOOR:-8080}"
put WORKERS_DOOR "${WORKERS_DOOR:-8081}"
put MLFLOW_DOOR "${MLFLOW_DOOR:-5000}"
put STORE_DOOR "${STORE_DOOR:-8333}"
put GRAFANA_DOOR "${GRAFANA_DOOR:-3000}"
put PROMETHEUS_DOOR "${PROMETHEUS_DOOR:-9090}"
put ALERTMANAGER_DOOR "${ALERTMANAGER_DOOR:-9093}"
# shellcheck disable=SC2086
sed $words "$here/proxy.conf" > "$folder/nginx.conf"
exec nginx -e stderr -p "$folder" -c "$folder/nginx.conf" -g "daemon off;${PROXY_USER:+ user $PROXY_USER;}"
