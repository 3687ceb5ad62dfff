#!/bin/sh
# One process of SeaweedFS: master, volumes, filer and the S3 gateway, which knows one user.
set -eu
umask 077
cat > /tmp/s3.json <<JSON
{"identities": [{
  "name": "optimizer",
  "credentials": [{"accessKey": "$STORE_ACCESS_KEY", "secretKey": "$STORE_SECRET_KEY"}],
  "actions": ["Admin", "Read", "Write", "List", "Tagging"]
}]}
JSON
exec weed server -dir=/data -ip=127.0.0.1 -ip.bind=0.0.0.0 -master.volumeSizeLimitMB=1024 -s3 -s3.config=/tmp/s3.json
