# puzzlebench beside TensorRT-LLM, for measuring on the GPU at hand:
#   docker build -t puzzlebench .
#   docker run --rm --gpus all --ipc host --volume "$PWD:/data" --user "$(id -u):$(id -g)" puzzlebench puzzlebench --help
# The default image is the TensorRT-LLM release behind most of the shipped kernel timings.
ARG TRTLLM_IMAGE=nvcr.io/nvidia/tensorrt-llm/release:1.3.0rc20
FROM ${TRTLLM_IMAGE}

# No -e or -u here: the base image has bash read a start-up file first, which is not written for them.
SHELL ["/bin/bash", "-o", "pipefail", "-c"]

COPY pyproject.toml README.md LICENSE /opt/puzzlebench/
COPY puzzlebench /opt/puzzlebench/puzzlebench
COPY kernels /opt/puzzlebench/kernels
COPY profiles /opt/puzzlebench/profiles
COPY search /opt/puzzlebench/search

# The image's torch is NVIDIA's own build, matched to its CUDA libraries and TensorRT-LLM: pip may add packages but never
# replace one of these. The list is taken from the image before the installation and compared with it afterwards.
# PIP_CONSTRAINT is the base image's own list, unset because TensorRT-LLM has since moved some of those versions.
RUN set -eu; \
    installed() { \
        python3 -m pip list --format=freeze --disable-pip-version-check \
        | grep -Ei '^(torch|torchvision|torchaudio|torchao|triton|pytorch[-_]triton|transformers|tokenizers|huggingface[-_]hub|numpy|pandas|pyarrow|scipy|tensorrt[^=]*|nvidia[-_][^=]*|cuda[-_][^=]*|flashinfer[^=]*)==' \
        | sort || true; \
    }; \
    installed > /tmp/image-constraints.txt; \
    grep -q '^torch==' /tmp/image-constraints.txt \
        || { echo "Error: the base image has no torch; TRTLLM_IMAGE has to be a TensorRT-LLM release image" >&2; exit 1; }; \
    env --unset=PIP_CONSTRAINT python3 -m pip install --no-cache-dir --disable-pip-version-check --break-system-packages \
        --constraint /tmp/image-constraints.txt '/opt/puzzlebench[models]'; \
    installed > /tmp/after.txt; \
    comm -23 /tmp/image-constraints.txt /tmp/after.txt | { ! grep .; } \
        || { echo "Error: pip replaced the packages above" >&2; exit 1; }; \
    rm /tmp/image-constraints.txt /tmp/after.txt; \
    puzzlebench --help > /dev/null

# Caches follow HOME, which any user id given to `docker run --user` may write.
RUN useradd --create-home --shell /bin/bash puzzlebench \
    && install --directory --mode=1777 /data /home/puzzlebench/.cache \
    && chmod 1777 /home/puzzlebench
ENV HOME=/home/puzzlebench
USER puzzlebench
WORKDIR /data

CMD ["puzzlebench", "--help"]
