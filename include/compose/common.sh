# What backup.sh and restore.sh share. Both run in the checkout whose docker-compose.yaml and .env started the services.
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
umask 077
BUCKET=artifacts
DATABASES=(airflow mlflow)

die() {
  echo "$(basename "$0"): $*" >&2
  exit 1
}

[ -f .env ] || die "no .env in $PWD: make secrets writes one; to restore elsewhere take along the old one's AIRFLOW_FERNET_KEY"

# ADO_COMPOSE="docker-compose" where both are installed and the old one is meant.
if [ -n "${ADO_COMPOSE:-}" ]; then
  read -ra COMPOSE <<< "$ADO_COMPOSE"
elif docker compose version > /dev/null 2>&1; then
  COMPOSE=(docker compose)
elif command -v docker-compose > /dev/null; then
  COMPOSE=(docker-compose)
else
  die "neither docker compose nor docker-compose is here"
fi

compose() { "${COMPOSE[@]}" "$@"; }

# sql DATABASE STATEMENT
sql() {
  compose exec -T postgres psql --username postgres --dbname "$1" --no-psqlrc --tuples-only --no-align --quiet \
    --set ON_ERROR_STOP=1 --command "$2" < /dev/null
}

# rclone with the store under the name `store:` and FOLDER at /backup:  store_copy FOLDER ARGUMENTS
store_copy() {
  local folder="$1"
  shift
  compose run --rm -T --no-deps --user "$(id -u):$(id -g)" --volume "$folder:/backup" store-copy --quiet "$@" < /dev/null
}

# Says which Fernet key a backup needs without holding it.
fernet_digest() {
  local key
  key="$(sed -n 's/^AIRFLOW_FERNET_KEY=//p' .env)"
  [ -n "$key" ] || die ".env holds no AIRFLOW_FERNET_KEY"
  printf '%s' "$key" | sha256sum | cut -d ' ' -f 1
}
