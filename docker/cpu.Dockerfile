# The CPU lane: driver and Ray node. Build from the repository root: docker build -f docker/cpu.Dockerfile -t ptq-bench:cpu .
FROM python:3.11.15-slim-bookworm

# openssh-client and rsync are for Ray's cluster launcher, whose head looks after the other nodes.
RUN apt-get update \
    && apt-get install --yes --no-install-recommends git make g++ libnuma1 util-linux openssh-client rsync \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --create-home ptqbench \
    && install --directory --owner=ptqbench /opt/ptq-bench /srv/ptq-bench
USER ptqbench
WORKDIR /opt/ptq-bench
ARG PTQ_BENCH_TORCH_INDEX=
COPY --chown=ptqbench . .
RUN PTQ_BENCH_LANE=cpu make setup
ENV PATH=/opt/ptq-bench/.venv/bin:$PATH
# What all nodes share is mounted here; results/ appears where a sweep is started.
WORKDIR /srv/ptq-bench
CMD ["ptqbench", "--help"]
