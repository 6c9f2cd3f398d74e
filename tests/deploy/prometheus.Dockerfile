# Prometheus from Debian's package, where prom/prometheus cannot be pulled.
ARG PYTHON_VERSION=3.11
FROM python:${PYTHON_VERSION}-slim
RUN apt-get update -qq && apt-get install -qq -y --no-install-recommends prometheus >/dev/null 2>&1 \
    && mkdir -p /prometheus && chown 65534:65534 /prometheus
USER 65534:65534
ENTRYPOINT ["prometheus"]
