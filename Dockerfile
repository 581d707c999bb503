# On the CPU:  docker build -t micu .
# On GPUs:     docker build -t micu --build-arg BASE=nvidia/cuda:12.8.1-runtime-ubuntu24.04 \
#                --build-arg TORCH=https://download.pytorch.org/whl/cu128 .
# Then:        docker run --rm -v "$PWD:/data" micu demo        (with GPUs: --gpus all)
ARG BASE=python:3.12-slim
FROM ${BASE}
ARG TORCH=https://download.pytorch.org/whl/cpu

# A base without Python, or with one that makes no environments, gets the distribution's.
RUN python3 -c "import ensurepip, venv" 2>/dev/null \
    || (apt-get update && apt-get install -y --no-install-recommends python3 python3-venv \
        && rm -rf /var/lib/apt/lists/*)
RUN python3 -m venv /opt/micu \
    && /opt/micu/bin/pip install --no-cache-dir torch torchvision --index-url ${TORCH}
COPY . /src
RUN /opt/micu/bin/pip install --no-cache-dir /src && rm -rf /src
ENV PATH=/opt/micu/bin:$PATH HOME=/data
WORKDIR /data
ENTRYPOINT ["micu"]
CMD ["--help"]
