# The CPU lane: driver or Ray worker. Build from the repository root: docker build -f docker/cpu.Dockerfile -t ptq-bench:cpu .
FROM python:3.11-slim-bookworm

RUN apt-get update \
    && apt-get install --yes --no-install-recommends git make g++ libnuma1 util-linux \
    && rm -rf /var/lib/apt/lists/*
WORKDIR /opt/ptq-bench
ARG PTQ_BENCH_TORCH_INDEX=
COPY . .
RUN PTQ_BENCH_LANE=cpu make setup
ENV PATH=/opt/ptq-bench/.venv/bin:$PATH
ENTRYPOINT ["ptqbench"]
CMD ["--help"]
