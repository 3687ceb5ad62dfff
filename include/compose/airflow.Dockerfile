# Airflow's own image, the provider through which macOS workers fetch tasks, and the one that keeps users, their roles and
# their passwords in the database. No MLX, torch or MLflow in here.
FROM apache/airflow:3.3.2-python3.11
RUN pip install --no-cache-dir "apache-airflow==3.3.2" "apache-airflow-providers-edge3==5.1.0" "apache-airflow-providers-fab==3.10.2"
# A new volume, and a new tmpfs, take their owner from the folder in the image.
RUN mkdir -p /opt/airflow/home && chmod 700 /opt/airflow/home
