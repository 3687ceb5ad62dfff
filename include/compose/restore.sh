#!/usr/bin/env bash
# Bring a backup back:  restore.sh BACKUP [--replace] [--other-key]
#
# Into an empty control plane (fresh volumes), or with --replace in the place of what is there. Each database is restored
# beside the old one, the objects are copied, and then both databases are exchanged in one transaction: a restore that ends
# early changes nothing that Airflow or MLflow sees, and may be run again. It ends with everything started.
set -euo pipefail
from="$(realpath -m "${1:?restore.sh BACKUP [--replace] [--other-key]: BACKUP is a folder that backup.sh wrote}")"
shift
replace=no other_key=no
for word in "$@"; do
  case "$word" in
    --replace) replace=yes ;;
    --other-key) other_key=yes ;;
    *) echo "restore.sh: unknown option $word: --replace and --other-key are there" >&2; exit 2 ;;
  esac
done
. "$(dirname "$0")/common.sh"

[ -f "$from/SHA256SUMS" ] && [ -f "$from/backup.txt" ] || die "$from is no finished backup: SHA256SUMS or backup.txt is missing"
(cd "$from" && sha256sum --check --strict --quiet SHA256SUMS >&2) || die "$from is damaged: the files above differ from SHA256SUMS"
told() { sed -n "s/^$1=//p" "$from/backup.txt"; }
if [ "$(told fernet_key_sha256)" != "$(fernet_digest)" ] && [ "$other_key" = no ]; then
  die "AIRFLOW_FERNET_KEY in .env is not the backup's: Airflow could not read its connections and variables. Put the old" \
    "key into .env, or add --other-key to go on without them"
fi

# again SECONDS WHAT COMMAND...: until it succeeds
again() {
  local deadline=$((SECONDS + $1)) what="$2"
  shift 2
  until "$@" > /dev/null 2>&1; do
    [ "$SECONDS" -lt "$deadline" ] || die "$what did not come up: ${COMPOSE[*]} logs tells why"
    sleep 2
  done
}

ready() { compose exec -T postgres pg_isready -h 127.0.0.1 -U postgres -d postgres < /dev/null; }
owners() { compose run --rm -T --no-deps postgres-init < /dev/null; }
bucket() { compose run --rm -T --no-deps store-init < /dev/null; }

compose up --detach postgres store
again 120 PostgreSQL ready
again 120 "the databases' owners" owners
again 120 "the store" bucket

if [ "$replace" = no ]; then
  for database in "${DATABASES[@]}"; do
    tables="$(sql "$database" "SELECT count(*) FROM pg_tables WHERE schemaname = 'public'")"
    [ "$tables" = 0 ] || die "the database $database holds $tables tables: --replace puts the backup in their place"
  done
  [ -z "$(store_copy "$from" lsf --max-depth 1 "store:$BUCKET")" ] ||
    die "the bucket $BUCKET holds objects: --replace puts the backup in their place"
fi
compose stop airflow-api-server airflow-scheduler airflow-dag-processor airflow-triggerer mlflow

for database in "${DATABASES[@]}"; do
  sql postgres "DROP DATABASE IF EXISTS ${database}_restored"
  sql postgres "CREATE DATABASE ${database}_restored OWNER ${database}"
  compose exec -T postgres pg_restore --username postgres --no-owner --no-privileges --role "$database" --dbname "${database}_restored" --exit-on-error --single-transaction \
    < "$from/$database.dump" || die "$database.dump could not be read back; nothing was changed"
done
store_copy "$from" copy --checksum /backup/store "store:$BUCKET" || die "the objects could not be copied; the databases are as they were"

exchange="SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname IN ('airflow', 'mlflow'); BEGIN;"
for database in "${DATABASES[@]}"; do
  sql postgres "DROP DATABASE IF EXISTS ${database}_before"
  exchange+="ALTER DATABASE $database RENAME TO ${database}_before;"
  exchange+="ALTER DATABASE ${database}_restored RENAME TO $database;"
  exchange+="REVOKE ALL ON DATABASE $database FROM PUBLIC;"
done
printf '%s COMMIT;\n' "$exchange" |
  compose exec -T postgres psql --username postgres --dbname postgres --no-psqlrc --quiet --set ON_ERROR_STOP=1 > /dev/null ||
  die "the databases could not be exchanged; nothing was changed"
for database in "${DATABASES[@]}"; do sql postgres "DROP DATABASE ${database}_before"; done
if [ "$replace" = yes ]; then store_copy "$from" sync --checksum /backup/store "store:$BUCKET"; fi
compose run --rm -T --no-deps --entrypoint tar airflow-init --extract --gzip --directory /opt/airflow/logs < "$from/logs.tar.gz"
compose up --detach
echo "restored $(told made), made at commit $(told commit); mlx-tasks doctor --side server --env .env says whether all is well"
