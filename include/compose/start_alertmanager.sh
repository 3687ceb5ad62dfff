#!/bin/sh
# The token comes from the environment; Alertmanager reads it from a file.
set -eu
umask 077
printf '%s' "$ALERT_TOKEN" > /tmp/alert_token
exec /bin/alertmanager --config.file=/etc/alertmanager/alertmanager.yml --storage.path=/alertmanager
