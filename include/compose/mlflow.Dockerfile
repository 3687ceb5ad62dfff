# The tracking server with a driver for PostgreSQL.
FROM python:3.11.13-slim-bookworm
RUN pip install --no-cache-dir "mlflow[auth]==3.17.2" "psycopg2-binary==2.9.13" "boto3==1.43.117"
RUN useradd --create-home mlflow
USER mlflow
WORKDIR /home/mlflow
