#!/bin/sh
# One process of SeaweedFS: master, volumes, filer and the S3 gateway, which knows whom make_secrets.py made keys for.
set -eu
umask 077
printf '%s' "$STORE_IDENTITIES" | base64 -d > /tmp/s3.json
unset STORE_IDENTITIES
exec weed server -dir=/data -ip=127.0.0.1 -ip.bind=0.0.0.0 -master.volumeSizeLimitMB=1024 -s3 -s3.config=/tmp/s3.json
