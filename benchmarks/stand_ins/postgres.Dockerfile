# In the place of postgres:*-bookworm: Debian 13's PostgreSQL 17 behind the environment and the folders of that image.
FROM stand-in/debian:13
RUN apt-get update && apt-get install -y --no-install-recommends postgresql-17 && rm -rf /var/lib/apt/lists/* /var/lib/postgresql/17
ENV PATH=/usr/lib/postgresql/17/bin:/usr/local/bin:/usr/bin:/bin PGDATA=/var/lib/postgresql/data
RUN install -d -m 700 -o postgres -g postgres "$PGDATA" && install -d -m 3777 -o postgres -g postgres /var/run/postgresql
COPY postgres_entrypoint.sh /usr/local/bin/docker-entrypoint.sh
VOLUME /var/lib/postgresql/data
STOPSIGNAL SIGINT
ENTRYPOINT ["docker-entrypoint.sh"]
CMD ["postgres"]
