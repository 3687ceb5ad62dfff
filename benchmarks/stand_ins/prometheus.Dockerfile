# In the place of prom/prometheus: Debian 13's Prometheus under that image's path and user, with the wget it has.
FROM stand-in/debian:13
RUN apt-get update && apt-get install -y --no-install-recommends prometheus wget && rm -rf /var/lib/apt/lists/* \
  && ln -s /usr/bin/prometheus /bin/prometheus 2>/dev/null || test -x /bin/prometheus
RUN install -d -o nobody -g nogroup /prometheus
USER nobody
WORKDIR /prometheus
ENTRYPOINT ["/bin/prometheus"]
