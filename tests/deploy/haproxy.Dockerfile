# HAProxy from Debian's package, where the registry's image cannot be pulled. It stands on the same user and signal.
ARG PYTHON_VERSION=3.11
FROM python:${PYTHON_VERSION}-slim
RUN apt-get update -qq && apt-get install -qq -y --no-install-recommends haproxy >/dev/null 2>&1
STOPSIGNAL SIGUSR1
ENTRYPOINT ["haproxy", "-W", "-db"]
CMD ["-f", "/usr/local/etc/haproxy/haproxy.cfg"]
