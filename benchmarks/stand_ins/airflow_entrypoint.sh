#!/bin/sh
# As the entry point of Airflow's image: a program of its own, or one of Airflow's commands.
set -eu
case "${1:-}" in
  bash | sh | python | airflow) exec "$@" ;;
  *) exec airflow "$@" ;;
esac
