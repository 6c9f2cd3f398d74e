# Two images of one package: `--target gateway`, HTTP and gRPC in front of a Triton that runs elsewhere, and
# `--target triton-cpu`, the binary of the nvidia-pytriton wheel with our onnxruntime backend. Without torch, compiler
# or pip, not root.
ARG PYTHON_VERSION=3.11

# What the images stand on: the base without package managers, in one layer.
FROM python:${PYTHON_VERSION}-slim AS trimmed
COPY deploy/docker/trim.sh /tmp/
RUN sh /tmp/trim.sh
FROM scratch AS runtime
COPY --from=trimmed / /
ENV PATH=/opt/eca/bin:/usr/local/bin:/usr/bin:/bin LANG=C.UTF-8 PYTHONUNBUFFERED=1 ECA_REPOSITORY=/models/repository

FROM python:${PYTHON_VERSION}-slim AS dependencies
WORKDIR /src
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_COMPILE=1
# pip and hatchling live outside of the environment that is shipped.
ENV INSTALL="/opt/tools/bin/pip --python /opt/eca/bin/python install -q"
COPY pyproject.toml constraints.txt deploy/docker/requirements.py ./
RUN apt-get update -qq && apt-get install -qq -y --no-install-recommends binutils >/dev/null 2>&1 \
    && python -m venv /opt/tools && python -m venv --without-pip /opt/eca \
    && /opt/tools/bin/pip install -q -c constraints.txt hatchling
# The dependencies first: this layer outlives changes of our code. Some wheels ship their debug symbols, and pillow a
# codec that the service does not accept.
RUN python requirements.py requirements tracing > requirements.txt \
    && $INSTALL -c constraints.txt -r requirements.txt \
    && cd /opt/eca/lib/python*/site-packages \
    && strip --strip-debug uvloop/*.so rapidjson*.so ml_dtypes/*.so httptools/parser/*.so \
    && rm -rf numpy/tests numpy/*/tests numpy/core/lib numpy/core/_simd.* pillow.libs/libavif* PIL/_avif.* \
    && /opt/eca/bin/python -B -c "import uvloop, rapidjson, ml_dtypes, httptools, numpy, PIL.Image; PIL.Image.init()"

FROM dependencies AS gateway-dependencies
RUN python -m compileall -q --invalidation-mode unchecked-hash /opt/eca/lib

FROM dependencies AS triton-dependencies
RUN python requirements.py requirements triton > requirements.txt && $INSTALL -c constraints.txt -r requirements.txt
# Triton's Python backend wants the interpreter as a library, which Debian packages apart.
ARG PYTHON_VERSION
RUN if ! ldconfig -p | grep -q libpython${PYTHON_VERSION}.so; then \
        apt-get install -qq -y --no-install-recommends libpython${PYTHON_VERSION} >/dev/null 2>&1; fi \
    && cp -L "$(ldconfig -p | awk -v lib=libpython${PYTHON_VERSION}.so '$1 ~ lib {print $NF; exit}')" \
        /opt/eca/lib/python*/site-packages/nvidia_pytriton.libs/ \
    && python -m compileall -q --invalidation-mode unchecked-hash /opt/eca/lib

# Our own code, in a layer of its own: an upgrade fetches a megabyte. Byte code is compiled here, since the file system is
# read-only later; without times in it, so that builds agree.
FROM dependencies AS own
COPY README.md LICENSE ./
COPY service service
COPY build build
RUN /opt/tools/bin/pip wheel -q --no-build-isolation --no-deps -w /wheel . \
    && $INSTALL --no-deps --prefix /own /wheel/*.whl \
    && python -m compileall -q --invalidation-mode unchecked-hash /own/lib

# The image has no compiler: Triton's backend is compiled here.
FROM own AS triton-own
RUN apt-get install -qq -y --no-install-recommends g++ >/dev/null 2>&1 \
    && cd /own/lib/python*/site-packages \
    && PYTHONPATH=. python -B -m eca_service.triton.native eca_service/triton/native_backend

FROM runtime AS triton-cpu
ARG ECA_VERSION
LABEL org.opencontainers.image.title="ECA Serve Triton (CPU)" \
      org.opencontainers.image.version="${ECA_VERSION}" \
      org.opencontainers.image.licenses="Apache-2.0"
COPY --from=triton-dependencies /opt/eca /opt/eca
COPY --from=triton-own /own /opt/eca
# Not for the open network: its release has known flaws in HTTP, which stays off; it speaks gRPC to the gateway alone.
ENV ECA_TRITON_HOST=0.0.0.0 ECA_TRITON_LOG=/dev/stdout
USER 10001:10001
EXPOSE 8001
# Asked with gRPC alone: Triton's own client, with numpy and asyncio, takes half a second of a core each time.
HEALTHCHECK --interval=5s --timeout=4s --start-period=30s --retries=3 CMD ["python", "-I", "-c", "import sys, grpc; \
sys.exit(not grpc.insecure_channel('127.0.0.1:8001') \
.unary_unary('/inference.GRPCInferenceService/ServerReady')(b'', timeout=3))"]
ENTRYPOINT ["eca-serve"]
CMD ["triton"]

FROM runtime AS gateway
ARG ECA_VERSION
LABEL org.opencontainers.image.title="ECA Serve gateway" \
      org.opencontainers.image.version="${ECA_VERSION}" \
      org.opencontainers.image.licenses="Apache-2.0"
COPY --from=gateway-dependencies /opt/eca /opt/eca
COPY --from=own /own /opt/eca
ENV ECA_HOST=0.0.0.0
USER 10001:10001
EXPOSE 8080 8081
# Ready, not merely alive: every model gave its golden answers through Triton.
HEALTHCHECK --interval=5s --timeout=4s --start-period=60s --retries=3 CMD ["python", "-IS", "-c", \
"import os, ssl, urllib.request as r; tls = 'ECA_TLS_CERT' in os.environ; \
r.urlopen(('http', 'https')[tls] + '://127.0.0.1:8080/readyz', timeout=3, context=ssl._create_unverified_context())"]
ENTRYPOINT ["eca-serve"]
CMD ["gateway"]
