#!/bin/sh
# Run once by the service postgres-init, and again after every change of a password: a database for each part, owned by a role
# that may do nothing else and that no other part knows. PGHOST, PGUSER and PGPASSWORD name the superuser.
set -eu
for part in airflow mlflow; do
  case "$part" in
    airflow) password="$AIRFLOW_DB_PASSWORD" ;;
    mlflow) password="$MLFLOW_DB_PASSWORD" ;;
  esac
  # psql quotes both; the statement goes in by its standard input, where no process list shows it.
  PART="$part" PASSWORD="$password" psql --dbname postgres --no-psqlrc --quiet --set ON_ERROR_STOP=1 << 'SQL'
\getenv part PART
\getenv password PASSWORD
SELECT format('CREATE ROLE %I', :'part') WHERE NOT EXISTS (SELECT FROM pg_roles WHERE rolname = :'part') \gexec
ALTER ROLE :"part" LOGIN NOSUPERUSER NOCREATEDB NOCREATEROLE NOREPLICATION NOBYPASSRLS PASSWORD :'password';
SELECT format('CREATE DATABASE %I OWNER %I', :'part', :'part')
  WHERE NOT EXISTS (SELECT FROM pg_database WHERE datname = :'part') \gexec
ALTER DATABASE :"part" OWNER TO :"part";
REVOKE ALL ON DATABASE :"part" FROM PUBLIC;
SQL
done
psql --dbname postgres --no-psqlrc --quiet --command 'REVOKE CONNECT ON DATABASE postgres FROM PUBLIC'
echo "airflow and mlflow own their databases"
