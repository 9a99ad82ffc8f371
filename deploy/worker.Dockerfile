# The worker with torch. TORCH_INDEX=https://download.pytorch.org/whl/cpu leaves CUDA out.
FROM python:3.11-slim-bookworm AS build
ARG TORCH_INDEX=https://pypi.org/simple
WORKDIR /src
RUN python -m venv /opt/dsd
COPY pyproject.toml constraints.txt README.md LICENSE ./
# Dependencies before our code: a change of the code alone does not install them again.
RUN /opt/dsd/bin/pip install --no-cache-dir --disable-pip-version-check --extra-index-url "$TORCH_INDEX" \
    -c constraints.txt '.[core,worker,s3]'
COPY . .
RUN /opt/dsd/bin/pip install --no-cache-dir --disable-pip-version-check --no-deps --force-reinstall .

FROM python:3.11-slim-bookworm
RUN useradd --uid 1000 --create-home dsd && install -d -o dsd -g dsd /storage /cache
COPY --from=build /opt/dsd /opt/dsd
ENV PATH=/opt/dsd/bin:$PATH PYTHONUNBUFFERED=1 NVIDIA_DRIVER_CAPABILITIES=compute,utility \
    HF_HOME=/cache/huggingface TORCH_HOME=/cache/torch
USER dsd
WORKDIR /home/dsd
VOLUME ["/storage", "/cache"]
HEALTHCHECK --interval=60s --timeout=30s --retries=3 --start-period=60s \
    CMD python -m deploy.health worker "worker@$HOSTNAME"
CMD ["celery", "--app=worker.tasks", "worker", "--pool=prefork", "--concurrency=1", "-O", "fair", \
    "--without-gossip", "--without-mingle", "--loglevel=INFO", "--hostname=worker@%h"]
