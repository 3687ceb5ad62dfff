# Airflow's own image and the provider through which macOS workers fetch tasks. No MLX, torch or MLflow in here.
FROM apache/airflow:3.3.2-python3.11
RUN pip install --no-cache-dir "apache-airflow==3.3.2" "apache-airflow-providers-edge3==5.1.0"
# A new volume takes its owner from the folder in the image.
RUN mkdir -p /opt/airflow/secrets && chmod 700 /opt/airflow/secrets
