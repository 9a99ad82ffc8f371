# The API and the migrations: no torch, no MLflow.
FROM python:3.11-slim-bookworm AS build
WORKDIR /src
RUN python -m venv /opt/dsd
COPY pyproject.toml constraints.txt README.md LICENSE ./
# Dependencies before our code: a change of the code alone does not install them again.
RUN /opt/dsd/bin/pip install --no-cache-dir --disable-pip-version-check -c constraints.txt '.[api,s3]'
COPY . .
RUN /opt/dsd/bin/pip install --no-cache-dir --disable-pip-version-check --no-deps --force-reinstall .

FROM python:3.11-slim-bookworm
RUN useradd --uid 1000 --create-home dsd && install -d -o dsd -g dsd /storage
COPY --from=build /opt/dsd /opt/dsd
ENV PATH=/opt/dsd/bin:$PATH PYTHONUNBUFFERED=1
USER dsd
WORKDIR /home/dsd
VOLUME /storage
EXPOSE 8000
HEALTHCHECK --interval=15s --timeout=10s --retries=4 --start-period=60s \
    CMD ["python", "-m", "deploy.health", "url", "http://127.0.0.1:8000/readyz"]
CMD ["uvicorn", "--factory", "api.main:create_app", "--host=0.0.0.0", "--port=8000", "--no-server-header", \
    "--timeout-graceful-shutdown=10"]
