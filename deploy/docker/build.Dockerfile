# The build step: checkpoints in, verified model versions out. On BASE=python:3.11-slim for a CPU, on NVIDIA's pytorch
# image for a GPU, whose own torch and TensorRT are kept.
ARG BASE=python:3.11-slim
FROM ${BASE} AS install
WORKDIR /src
# A page of links to torch's CPU wheels; without it pip takes the build for CUDA, several GB. Empty on NVIDIA's image.
ARG TORCH_LINKS=
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_CONSTRAINT=
COPY pyproject.toml constraints.txt deploy/docker/requirements.py ./
RUN python3 -m venv --system-site-packages --without-pip /opt/eca \
    && python3 requirements.py requirements build > requirements.txt \
    && python3 requirements.py constraints > pins.txt \
    && python3 -m pip --python /opt/eca/bin/python install -q -c pins.txt -r requirements.txt hatchling \
        ${TORCH_LINKS:+--find-links ${TORCH_LINKS}}
COPY README.md LICENSE ./
COPY service service
COPY build build
RUN python3 -m pip --python /opt/eca/bin/python install -q --no-build-isolation --no-deps .

FROM ${BASE}
ARG ECA_VERSION=0.1.0
LABEL org.opencontainers.image.title="ECA Serve build step" \
      org.opencontainers.image.version="${ECA_VERSION}" \
      org.opencontainers.image.licenses="Apache-2.0"
COPY --from=install /opt/eca /opt/eca
COPY --chmod=0755 deploy/docker/compile.sh /usr/local/bin/compile-checkpoints
# A volume made for /models takes over its owner. What is staged must lie beside the repository, so both are in it.
RUN mkdir -p /models/repository && chown -R 10001:10001 /models
# Torch-TensorRT, and PyTorch's compiler before 2.13, cannot be imported by a user whom the system does not know.
RUN echo 'eca:x:10001:10001::/tmp:/usr/sbin/nologin' >> /etc/passwd && echo 'eca:x:10001:' >> /etc/group
ENV PATH=/opt/eca/bin:$PATH PYTHONUNBUFFERED=1 HOME=/tmp ECA_REPOSITORY=/models/repository
USER 10001:10001
ENTRYPOINT []
CMD ["compile-checkpoints", "/checkpoints"]
