#!/usr/bin/env bash
# Copy what the control plane keeps into one folder, while it runs:  backup.sh [FOLDER]   (default: backups/ of the checkout)
#
# airflow.dump, mlflow.dump (pg_dump), store/ (the bucket's objects), logs.tar.gz (Airflow's task logs), backup.txt,
# SHA256SUMS. The databases come before the bucket: a row is written after the objects that it names, so every object
# that a dump names is in the copy. Secrets are left out: keep .env by itself, AIRFLOW_FERNET_KEY above all.
set -euo pipefail
target="$(realpath -m "${1:-$(dirname "$0")/../../backups}")"
. "$(dirname "$0")/common.sh"

mkdir -p "$target"
exec 9> "$target/.lock"
flock --nonblock 9 || die "another backup is being written to $target"
rm -rf "$target"/.unfinished-*  # of a backup that was killed: the lock says that none is under way
made="$(date -u +%Y-%m-%dT%H-%M-%SZ)"
work="$target/.unfinished-$made"
[ ! -e "$target/$made" ] || die "$target/$made is there already"
mkdir "$work" "$work/store"
trap 'rm -rf "$work"' EXIT

fernet="$(fernet_digest)"
for database in "${DATABASES[@]}"; do
  compose exec -T postgres pg_dump --username postgres --format custom "$database" < /dev/null > "$work/$database.dump" ||
    die "no dump of $database: is the control plane up?"
done
store_copy "$work" sync --checksum --use-server-modtime "store:$BUCKET" /backup/store || die "the bucket could not be copied"
# tar ends with 1 where a log grew while it was read.
compose exec -T airflow-api-server sh -c 'tar --create --gzip --directory /opt/airflow/logs . || [ $? -eq 1 ]' \
  < /dev/null > "$work/logs.tar.gz" || die "no copy of Airflow's logs"

commit="$(git rev-parse HEAD 2> /dev/null || echo unknown)"
postgres="$(sql airflow 'SHOW server_version')"
airflow_tables="$(sql airflow 'SELECT version_num FROM alembic_version')"
mlflow_tables="$(sql mlflow 'SELECT version_num FROM alembic_version')"
objects="$(find "$work/store" -type f | wc -l)"
cat > "$work/backup.txt" << TEXT
made=$made
commit=$commit
postgres=$postgres
airflow_tables=$airflow_tables
mlflow_tables=$mlflow_tables
objects=$objects
fernet_key_sha256=$fernet
TEXT
(cd "$work" && find . -type f ! -name SHA256SUMS -print0 | sort --zero-terminated | xargs -0 sha256sum > SHA256SUMS)
sync --file-system "$work"
mv --no-target-directory "$work" "$target/$made"
echo "$target/$made: $(du -sh "$target/$made" | cut -f 1), $(sed -n 's/^objects=//p' "$target/$made/backup.txt") objects"
