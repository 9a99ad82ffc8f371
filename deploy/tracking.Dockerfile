# The controller and the MLflow server: no torch.
FROM python:3.11-slim-bookworm AS build
WORKDIR /src
RUN python -m venv /opt/dsd
COPY pyproject.toml constraints.txt README.md LICENSE ./
# Dependencies before our code: a change of the code alone does not install them again.
RUN /opt/dsd/bin/pip install --no-cache-dir --disable-pip-version-check -c constraints.txt '.[worker,s3]'
COPY . .
RUN /opt/dsd/bin/pip install --no-cache-dir --disable-pip-version-check --no-deps --force-reinstall .

FROM python:3.11-slim-bookworm
RUN useradd --uid 1000 --create-home dsd && install -d -o dsd -g dsd /storage /artifacts
COPY --from=build /opt/dsd /opt/dsd
ENV PATH=/opt/dsd/bin:$PATH PYTHONUNBUFFERED=1
USER dsd
WORKDIR /home/dsd
VOLUME ["/storage", "/artifacts"]
HEALTHCHECK --interval=30s --timeout=15s --retries=3 --start-period=60s \
    CMD ["python", "-m", "deploy.health", "controller"]
CMD ["python", "-m", "worker.controller"]
