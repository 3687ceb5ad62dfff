#!/bin/sh
# Run by the service check-secrets before all others: a secret that is short or well known starts nothing.
set -eu
wrong=0

refuse() {
  echo "$1 $2: run make secrets, or set it in .env" >&2
  wrong=1
}

# check NAME VALUE SHORTEST
check() {
  if [ -z "$2" ]; then
    refuse "$1" "is missing"
    return
  fi
  case "$(printf '%s' "$2" | tr '[:upper:]' '[:lower:]')" in
    *password* | *secret* | *changeme* | *change-me* | *airflow* | *admin* | *minio* | *default* | *example* | 12345* | qwert* )
      refuse "$1" "is one that everybody tries first" ;;
  esac
  if [ "${#2}" -lt "$3" ]; then refuse "$1" "has ${#2} characters, at least $3 are needed"; fi
  if [ "$(printf '%s' "$2" | fold -w1 | sort -u | wc -l)" -lt 6 ]; then refuse "$1" "repeats a few characters"; fi
}

check POSTGRES_PASSWORD "${POSTGRES_PASSWORD:-}" 16
check AIRFLOW_DB_PASSWORD "${AIRFLOW_DB_PASSWORD:-}" 16
check MLFLOW_DB_PASSWORD "${MLFLOW_DB_PASSWORD:-}" 16
check AIRFLOW_FERNET_KEY "${AIRFLOW_FERNET_KEY:-}" 44
check AIRFLOW_SIGNING_KEY "${AIRFLOW_SIGNING_KEY:-}" 1000
check AIRFLOW_API_SECRET_KEY "${AIRFLOW_API_SECRET_KEY:-}" 32
check AIRFLOW_ADMIN_PASSWORD "${AIRFLOW_ADMIN_PASSWORD:-}" 12
check MLFLOW_ADMIN_PASSWORD "${MLFLOW_ADMIN_PASSWORD:-}" 12
check MLFLOW_SESSION_KEY "${MLFLOW_SESSION_KEY:-}" 32
check GRAFANA_ADMIN_PASSWORD "${GRAFANA_ADMIN_PASSWORD:-}" 12
check WATCH_PASSWORD "${WATCH_PASSWORD:-}" 12
check STORE_ADMIN_ACCESS_KEY "${STORE_ADMIN_ACCESS_KEY:-}" 16
check STORE_ADMIN_SECRET_KEY "${STORE_ADMIN_SECRET_KEY:-}" 32
check STORE_ACCESS_KEY "${STORE_ACCESS_KEY:-}" 16
check STORE_SECRET_KEY "${STORE_SECRET_KEY:-}" 32
check ALERT_TOKEN "${ALERT_TOKEN:-}" 24
check ALERT_SECRET "${ALERT_SECRET:-}" 24
# addressed NAME VALUE
addressed() {
  case "$2" in *[!A-Za-z0-9]*) refuse "$1" "must hold letters and digits only, since it becomes part of an address" ;; esac
}
addressed AIRFLOW_DB_PASSWORD "${AIRFLOW_DB_PASSWORD:-}"
addressed MLFLOW_DB_PASSWORD "${MLFLOW_DB_PASSWORD:-}"
# One secret in two places would make one part the other.
for name in AIRFLOW_DB_PASSWORD MLFLOW_DB_PASSWORD; do
  eval "value=\${$name:-}"
  if [ "$value" = "${POSTGRES_PASSWORD:-}" ]; then refuse "$name" "is the superuser's too"; fi
done
[ "$wrong" -eq 0 ] && echo "the secrets are good"
exit "$wrong"
