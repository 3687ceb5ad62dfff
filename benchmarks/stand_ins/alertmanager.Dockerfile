# In the place of prom/alertmanager: Debian 13's Alertmanager under that image's path and user, with the wget it has.
FROM stand-in/debian:13
RUN apt-get update && apt-get install -y --no-install-recommends prometheus-alertmanager wget && rm -rf /var/lib/apt/lists/* \
  && ln -s /usr/bin/prometheus-alertmanager /bin/alertmanager
RUN install -d -o nobody -g nogroup /alertmanager
USER nobody
WORKDIR /alertmanager
ENTRYPOINT ["/bin/alertmanager"]
