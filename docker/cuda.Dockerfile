# The CUDA lane: driver or Ray worker. The driver library comes from the host's container toolkit; CUDA itself from the
# locked wheels. Build from the repository root: docker build -f docker/cuda.Dockerfile -t ptq-bench:cuda .
FROM python:3.11-slim-bookworm

RUN apt-get update \
    && apt-get install --yes --no-install-recommends git make g++ libnuma1 util-linux \
    && rm -rf /var/lib/apt/lists/*
WORKDIR /opt/ptq-bench
COPY . .
RUN PTQ_BENCH_LANE=cuda make setup
ENV PATH=/opt/ptq-bench/.venv/bin:$PATH
ENTRYPOINT ["ptqbench"]
CMD ["--help"]
