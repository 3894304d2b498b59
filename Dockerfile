# syntax=docker/dockerfile:1
# docker build --target cpu -t medley:cpu .        docker build --target gpu -t medley:gpu .
# docker build --target ray -t medley:ray .      for a Ray cluster, on CPUs
# docker build --target vllm -t medley:vllm .      on a GPU, with vLLM beside the native engine
FROM python:3.11-slim-bookworm AS source
WORKDIR /src
COPY pyproject.toml constraints.txt constraints-vllm.txt README.md LICENSE ./
COPY protos protos
COPY adapters adapters
COPY loadtest loadtest
COPY server server
COPY training training
RUN python -m venv /opt/medley

FROM source AS build-cpu
# The compiler makes the engine's CPU kernels; the running image needs none.
RUN apt-get update && apt-get install --yes --no-install-recommends g++=4:12.2.0-3 && rm -rf /var/lib/apt/lists/*
RUN /opt/medley/bin/pip install --no-cache-dir --constraint constraints.txt \
    --extra-index-url https://download.pytorch.org/whl/cpu '.[postgres,s3,tracing]'

FROM build-cpu AS build-ray
RUN /opt/medley/bin/pip install --no-cache-dir --constraint constraints.txt \
    --extra-index-url https://download.pytorch.org/whl/cpu '.[postgres,ray,s3,tracing]'

FROM source AS build-gpu
RUN /opt/medley/bin/pip install --no-cache-dir --constraint constraints.txt '.[postgres,s3,tracing]'

FROM source AS build-vllm
# vLLM's lock has nothing for PostgreSQL and S3; these two are all that the locks differ in.
RUN grep -vE '^(fastapi|numpy)==' constraints.txt >/tmp/constraints.txt \
    && /opt/medley/bin/pip install --no-cache-dir --constraint /tmp/constraints.txt --constraint constraints-vllm.txt \
        '.[postgres,s3,vllm]'

FROM python:3.11-slim-bookworm AS runtime
RUN useradd --system --uid 10001 --create-home medley \
    && install --directory --owner=medley /var/lib/medley
ENV PATH=/opt/medley/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    MEDLEY_DATA_DIR=/var/lib/medley
USER 10001
WORKDIR /var/lib/medley
VOLUME /var/lib/medley
EXPOSE 8000 50051
HEALTHCHECK --interval=10s --timeout=3s --start-period=60s \
    CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8000/readyz', timeout=2)"]
ENTRYPOINT ["medley"]
CMD ["serve", "--host", "0.0.0.0"]

FROM runtime AS gpu
COPY --from=build-gpu /opt/medley /opt/medley

FROM runtime AS ray
USER 0
# KubeRay's probes call wget, and its login shells do not know where the environment is.
RUN apt-get update && apt-get install --yes --no-install-recommends wget=1.21.3-1+deb12u1 \
    && rm -rf /var/lib/apt/lists/* && ln -s /opt/medley/bin/ray /opt/medley/bin/serve /usr/local/bin/
USER 10001
COPY --from=build-ray /opt/medley /opt/medley

FROM runtime AS vllm
USER 0
# Triton and vLLM compile at run time.
RUN apt-get update && apt-get install --yes --no-install-recommends g++=4:12.2.0-3 && rm -rf /var/lib/apt/lists/*
USER 10001
COPY --from=build-vllm /opt/medley /opt/medley

# The last stage is what a build without --target makes.
FROM runtime AS cpu
COPY --from=build-cpu /opt/medley /opt/medley
