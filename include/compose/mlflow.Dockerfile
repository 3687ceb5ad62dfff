# The tracking server with a driver for PostgreSQL.
FROM python:3.11.13-slim-bookworm
RUN pip install --no-cache-dir "mlflow==3.17.2" "psycopg2-binary==2.9.10"
RUN useradd --create-home mlflow && mkdir /artifacts && chown mlflow /artifacts
USER mlflow
WORKDIR /home/mlflow
