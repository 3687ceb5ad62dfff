# In the place of chrislusf/seaweedfs: OpenStack Swift from Debian 13, which keeps objects as files and speaks S3, behind
# a `weed` that takes the options of start_store.sh.
FROM stand-in/debian:13
RUN apt-get update && apt-get install -y --no-install-recommends swift-proxy swift-account swift-container swift-object \
  memcached wget netcat-openbsd && rm -rf /var/lib/apt/lists/* /etc/swift/*.conf
COPY weed.py /usr/bin/weed
RUN chmod 755 /usr/bin/weed
CMD ["weed"]
