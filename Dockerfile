# What Compose, Docker and Kubernetes run: the code and its packages, as a user that is not root. BASE is a Debian with
# Python 3.11 or later. TORCH_INDEX is where torch comes from: that of https://pypi.org/simple has CUDA, 4 GB more.
ARG BASE=python:3.11-slim

FROM ${BASE} AS build
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
WORKDIR /opt/textgen
COPY requirements.txt .
RUN python -m venv --without-pip /opt/venv && \
    pip --python /opt/venv/bin/python install --no-cache-dir --no-deps --index-url "${TORCH_INDEX}" \
    "$(grep '^torch==' requirements.txt)"
RUN pip --python /opt/venv/bin/python install --no-cache-dir -r requirements.txt && \
    find /opt/venv/lib -type d \( -name tests -o -path '*/torch/test' \) -prune -exec rm -r {} +
COPY . .
RUN chmod -R a+rX . && python -m compileall -q .

FROM ${BASE}
# torch.compile writes C++, and C for a GPU
RUN apt-get update -qq && apt-get install -y -qq --no-install-recommends g++ && \
    apt-get clean && rm -r /var/lib/apt/lists/*
RUN useradd --uid 1000 --create-home textgen && install -d -o textgen -g textgen /opt/textgen/data
COPY --from=build /opt/venv /opt/venv
COPY --from=build /opt/textgen /opt/textgen
ARG COMMIT=""
ENV PATH=/opt/venv/bin:${PATH} PYTHONPATH=/opt/textgen TEXTGEN_COMMIT=${COMMIT}
WORKDIR /opt/textgen
USER 1000:1000
