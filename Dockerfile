# docker build -t subcompress . && docker run --rm -v "$PWD:/models" subcompress info net.safetensors
# To serve: docker run --rm -p 8000:8000 -v "$PWD:/models" subcompress serve /models --host 0.0.0.0
# For a GPU image: docker build --build-arg TORCH_INDEX=https://pypi.org/simple --build-arg PACKAGES="gcc libc6-dev" .
# (Triton builds its launcher there; without gcc, torch rebuilds the weights.)
FROM python:3.11-slim AS build
# The compiler that builds the kernel stays here.
RUN apt-get update && apt-get install -y --no-install-recommends gcc libc6-dev && rm -rf /var/lib/apt/lists/*
WORKDIR /opt/subcompress
COPY pyproject.toml README.md LICENSE ./
COPY subcompress subcompress
COPY cli cli
COPY models models
RUN pip wheel --no-cache-dir --no-deps --wheel-dir /wheels .

FROM python:3.11-slim
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
ARG PACKAGES=
RUN if [ -n "$PACKAGES" ]; then \
        apt-get update && apt-get install -y --no-install-recommends $PACKAGES && rm -rf /var/lib/apt/lists/*; \
    fi
COPY constraints.txt /opt/subcompress/
RUN --mount=type=bind,from=build,source=/wheels,target=/wheels \
    pip install --no-cache-dir --extra-index-url "$TORCH_INDEX" -c /opt/subcompress/constraints.txt /wheels/*.whl

RUN useradd --create-home user
USER user
WORKDIR /models
ENTRYPOINT ["subcompress"]
CMD ["--help"]
