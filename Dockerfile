# docker build -t subcompress . && docker run --rm -v "$PWD:/models" subcompress info net.safetensors
# For a GPU image: docker build --build-arg TORCH_INDEX=https://pypi.org/simple .
FROM python:3.11-slim

ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
WORKDIR /opt/subcompress
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY subcompress subcompress
COPY cli cli
COPY models models
RUN pip install --no-cache-dir --extra-index-url "$TORCH_INDEX" -c constraints.txt .

RUN useradd --create-home user
USER user
WORKDIR /models
ENTRYPOINT ["subcompress"]
CMD ["--help"]
