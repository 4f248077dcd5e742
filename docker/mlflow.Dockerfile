# MLflow's server with what it needs for PostgreSQL and S3, all of it at the lock's versions, and nothing of the lanes.
# Build from the repository root: docker build -f docker/mlflow.Dockerfile -t ptq-bench:mlflow .
FROM python:3.11.15-slim-bookworm

COPY locks/common.txt /opt/common.txt
RUN pip install --no-cache-dir --constraint /opt/common.txt mlflow boto3 psycopg psycopg-binary \
    && useradd --create-home mlflow
USER mlflow
CMD ["mlflow", "server", "--help"]
