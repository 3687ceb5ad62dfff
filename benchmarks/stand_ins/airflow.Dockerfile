# In the place of apache/airflow: Airflow from PyPI under this project's pins, and what its image promises: the user
# `airflow` (uid 50000, group 0), AIRFLOW_HOME, an entry point that takes `bash`, `python` or one of Airflow's commands.
FROM stand-in/python:3.11
RUN useradd --uid 50000 --gid 0 --create-home airflow \
  && mkdir -p /opt/airflow/logs /opt/airflow/dags && chown -R airflow:0 /opt/airflow && chmod -R g=u /opt/airflow
COPY airflow_entrypoint.sh /entrypoint
ENV AIRFLOW_HOME=/opt/airflow PATH=/home/airflow/.local/bin:/usr/local/bin:/usr/bin:/bin
USER airflow
WORKDIR /opt/airflow
COPY constraints.txt /home/airflow/constraints.txt
ENV PIP_CONSTRAINT=/home/airflow/constraints.txt PIP_USER=true
ARG AIRFLOW_VERSION
RUN pip install --no-cache-dir "apache-airflow==${AIRFLOW_VERSION}" apache-airflow-providers-fab psycopg2-binary asyncpg
ENTRYPOINT ["/usr/bin/dumb-init", "--", "/entrypoint"]
