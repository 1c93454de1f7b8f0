# The image of the worker, for CPU or CUDA. From the repository's root:
#
#     docker build -f docker/worker.Dockerfile -t strucprune/worker:0.1.0-cpu .
#     docker build -f docker/worker.Dockerfile --build-arg DEVICE=cuda -t strucprune/worker:0.1.0-cuda .
#
# torch's own wheels contain CUDA, so both start from the same base. The driver is the host's.
# The digest is that of the tag's multi-platform index.
ARG BASE=python:3.11.16-slim-bookworm@sha256:528257d48c1da0dcecc2e725d1ae34498d60c965f1241e39cd6a85a8859bdf84

FROM ${BASE} AS dependencies
ARG PIP_VERSION=26.3
# More options for pip, such as a mirror.
ARG PIP_ARGS=""
# cpu or cuda.
ARG DEVICE=cpu
# For DEVICE=cpu: the index of torch builds without CUDA, which torch's installation page names. Without
# it the image holds several GB of CUDA that nothing uses.
ARG TORCH_CPU_INDEX=""
WORKDIR /build
# Only these two files decide which packages are installed, so changes of code keep this layer.
COPY pyproject.toml constraints.txt ./
# pip installs a group's dependencies without the project, but not the project's own.
RUN python -c 'import tomllib; project = tomllib.load(open("pyproject.toml", "rb"))["project"]; print(*project["dependencies"], *project["optional-dependencies"]["tasks"], sep="\n")' > requirements.txt
# An image needs no tests, headers, pip, nor pyarrow's network protocol.
RUN case "${DEVICE}" in \
        cpu) index="${TORCH_CPU_INDEX}" ;; \
        cuda) index="" ;; \
        *) echo "DEVICE is '${DEVICE}'; use cpu or cuda" >&2; exit 1 ;; \
    esac \
    && python -m venv /opt/venv \
    && /opt/venv/bin/pip install --no-cache-dir "pip==${PIP_VERSION}" \
    && PIP_EXTRA_INDEX_URL="${index}" \
        /opt/venv/bin/pip install --no-cache-dir ${PIP_ARGS} -c constraints.txt \
        -r requirements.txt --group worker \
    && /opt/venv/bin/pip uninstall --yes pip \
    && find /opt/venv/lib \( -path '*/pyarrow/tests' -o -path '*/pyarrow/include' \
        -o -path '*/pyarrow/*flight*' -o -path '*/numpy/*/tests' -o -path '*/torch/include' -o -path '*/torch/test' \) \
        -prune -exec rm -rf {} +

FROM ${BASE}
RUN apt-get update \
    && apt-get install --yes --no-install-recommends tini=0.19.0-* \
    && rm -rf /var/lib/apt/lists/* \
    && groupadd --gid 10001 strucprune \
    && useradd --uid 10001 --gid 10001 --no-create-home --home-dir /tmp strucprune \
    && install --directory --owner=10001 --group=10001 /scratch
COPY --from=dependencies /opt/venv /opt/venv
WORKDIR /app
COPY strucprune_core strucprune_core
# The only part of the API that a worker imports.
COPY api/__init__.py api/__init__.py
COPY api/jobs api/jobs
COPY worker worker
# The root file system may be read-only later, so byte code is written now.
RUN python -m compileall -q .
ENV PATH=/opt/venv/bin:$PATH \
    PYTHONPATH=/app \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    HOME=/tmp \
    STRUCPRUNE_SCRATCH_DIRECTORY=/scratch \
    STRUCPRUNE_HEARTBEAT_FILE=/tmp/strucprune-heartbeat \
    STRUCPRUNE_DRAIN_FILE=/tmp/strucprune-drain
USER 10001:10001
HEALTHCHECK --interval=30s --timeout=5s --start-period=120s --retries=3 \
    CMD ["sh", "-c", "test -n \"$(find \"$STRUCPRUNE_HEARTBEAT_FILE\" -newermt '-2 minutes')\""]
# On SIGTERM, the worker gives the running job back at its next safe point. tini passes the signal to
# the worker alone, which stops its own children in order.
ENTRYPOINT ["/usr/bin/tini", "--"]
CMD ["python", "-m", "worker"]

# Last, because they change with every build.
ARG VERSION=0.1.0
ARG REVISION=unknown
ARG DEVICE=cpu
LABEL org.opencontainers.image.title="StrucPrune worker (${DEVICE})" \
    org.opencontainers.image.description="Worker of StrucPrune, structured pruning of large language models" \
    org.opencontainers.image.version="${VERSION}" \
    org.opencontainers.image.revision="${REVISION}" \
    org.opencontainers.image.licenses="Apache-2.0" \
    org.opencontainers.image.base.name="python:3.11.16-slim-bookworm"
