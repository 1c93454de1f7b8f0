# The image of the REST API and of the reconciler; it has no torch. From the repository's root:
#
#     docker build -f docker/api.Dockerfile -t strucprune/api:0.1.0 .
#
# The digest is that of the tag's multi-platform index. BASE may also name a mirror or a stand-in.
ARG BASE=python:3.11.16-slim-bookworm@sha256:528257d48c1da0dcecc2e725d1ae34498d60c965f1241e39cd6a85a8859bdf84

FROM ${BASE} AS dependencies
ARG PIP_VERSION=26.3
# More options for pip, such as a mirror.
ARG PIP_ARGS=""
WORKDIR /build
# Only these two files decide which packages are installed, so changes of code keep this layer.
COPY pyproject.toml constraints.txt ./
# An image needs no tests, headers, pip, nor pyarrow's network protocol.
RUN python -m venv /opt/venv \
    && /opt/venv/bin/pip install --no-cache-dir "pip==${PIP_VERSION}" \
    && /opt/venv/bin/pip install --no-cache-dir ${PIP_ARGS} -c constraints.txt --group api \
    && /opt/venv/bin/pip uninstall --yes setuptools pip \
    && find /opt/venv/lib \( -path '*/pyarrow/tests' -o -path '*/pyarrow/include' \
        -o -path '*/pyarrow/*flight*' -o -path '*/numpy/*/tests' \) -prune -exec rm -rf {} +

FROM ${BASE}
RUN apt-get update \
    && apt-get install --yes --no-install-recommends tini=0.19.0-* \
    && rm -rf /var/lib/apt/lists/* \
    && groupadd --gid 10001 strucprune \
    && useradd --uid 10001 --gid 10001 --no-create-home --home-dir /tmp strucprune
COPY --from=dependencies /opt/venv /opt/venv
WORKDIR /app
COPY strucprune_core strucprune_core
COPY api api
# The root file system may be read-only later, so byte code is written now.
RUN python -m compileall -q .
ENV PATH=/opt/venv/bin:$PATH \
    PYTHONPATH=/app \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    HOME=/tmp \
    STRUCPRUNE_API_HOST=0.0.0.0 \
    STRUCPRUNE_API_PORT=8000 \
    STRUCPRUNE_HEARTBEAT_FILE=/tmp/strucprune-heartbeat
USER 10001:10001
EXPOSE 8000
# For the API. A reconciler that runs from this image is checked by the age of its heartbeat file.
HEALTHCHECK --interval=10s --timeout=5s --start-period=120s --retries=3 \
    CMD ["python", "-I", "-c", "import os, urllib.request as r; r.urlopen('http://127.0.0.1:' + os.environ['STRUCPRUNE_API_PORT'] + '/healthz', timeout=4)"]
ENTRYPOINT ["/usr/bin/tini", "--"]
CMD ["python", "-m", "api"]

# Last, because they change with every build.
ARG VERSION=0.1.0
ARG REVISION=unknown
LABEL org.opencontainers.image.title="StrucPrune API" \
    org.opencontainers.image.description="REST API and reconciler of StrucPrune, structured pruning of large language models" \
    org.opencontainers.image.version="${VERSION}" \
    org.opencontainers.image.revision="${REVISION}" \
    org.opencontainers.image.licenses="Apache-2.0" \
    org.opencontainers.image.base.name="python:3.11.16-slim-bookworm"
