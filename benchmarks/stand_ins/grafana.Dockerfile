# In the place of grafana/grafana, of which no package exists: it reads the provisioning and answers its health check. NOT Grafana.
FROM stand-in/debian:12
RUN apt-get update && apt-get install -y --no-install-recommends wget python3-yaml && rm -rf /var/lib/apt/lists/*
COPY grafana.py /grafana.py
RUN useradd --uid 472 grafana && install -d -o grafana /var/lib/grafana
USER grafana
ENTRYPOINT ["python3", "/grafana.py"]
