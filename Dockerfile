# Server and worker in one image; compose.yaml runs both.
#   docker build -t pocketune .
#   docker run --rm -p 127.0.0.1:50051:50051 -e POCKETUNE_HOST=0.0.0.0 -e POCKETUNE_INSECURE=true pocketune
FROM python:3.12-slim

# PyTorch's CPU wheels; for GPU workers: --build-arg TORCH_INDEX=https://pypi.org/simple
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
ENV PYTHONUNBUFFERED=1 PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 GOMP_SPINCOUNT=10000

WORKDIR /app
COPY requirements.lock pyproject.toml README.md LICENSE pocketune.py ./
RUN pip install --extra-index-url "$TORCH_INDEX" --requirement requirements.lock
COPY cloud cloud
COPY export export
COPY mobile_runtime mobile_runtime
COPY protos protos
RUN pip install --no-deps --no-build-isolation . \
    && useradd --create-home --uid 10001 pocketune \
    && install -d -m 0700 -o pocketune /data

USER pocketune
WORKDIR /home/pocketune
ENV POCKETUNE_DATA_DIR=/data POCKETUNE_LOG_FORMAT=json
VOLUME /data
EXPOSE 50051 9464
# SIGTERM drains: running calls finish, jobs are handed back.
STOPSIGNAL SIGTERM
ENTRYPOINT ["pocketune"]
CMD ["serve"]
