#!/usr/bin/env bash
# Airflow's parts: the keys come from the environment, Airflow reads them from files.  start_airflow.sh init | COMMAND...
set -euo pipefail
umask 077
printf '%s' "$AIRFLOW_SIGNING_KEY" | base64 -d > "$AIRFLOW__API_AUTH__JWT_PRIVATE_KEY_PATH"
printf '%s' "$WORKER_KEYS" | base64 -d > "$AIRFLOW__EDGE__TRUSTED_JWKS_URL"
unset AIRFLOW_SIGNING_KEY WORKER_KEYS
if [ "$1" != init ]; then exec airflow "$@"; fi

airflow db migrate
airflow pools set mlx 64 "each worker takes one stage at a time; so many workers compute at once, at most"
# Made at the first start; the password of .env at each. Others: airflow users create, with the roles Viewer, User, Op.
airflow users create --username admin --role Admin --firstname admin --lastname admin --email admin@localhost.localdomain \
  --password "$AIRFLOW_ADMIN_PASSWORD"
airflow users reset-password --username admin --password "$AIRFLOW_ADMIN_PASSWORD"
