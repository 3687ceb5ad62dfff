#!/bin/sh
# MLflow's server, with logins: everybody who has one reads, and what more each may do stands in its database, where
# `start_mlflow.sh init` writes it.
set -eu
umask 077
cat > "$MLFLOW_AUTH_CONFIG_PATH" << INI
[mlflow]
default_permission = READ
database_uri = $MLFLOW_BACKEND_STORE_URI
authorization_function = mlflow.server.auth:authenticate_request_basic_auth
INI
if [ "${1:-}" = init ]; then exec python "$(dirname "$0")/init_mlflow.py"; fi
exec mlflow server --app-name basic-auth --host "${MLFLOW_HOST:-0.0.0.0}" --port "${MLFLOW_PORT:-5000}" --workers "${MLFLOW_WORKERS:-2}" \
  --artifacts-destination "${MLFLOW_ARTIFACTS:-s3://artifacts/mlflow}" \
  --allowed-hosts mlflow:5000,127.0.0.1:5000,localhost:5000
