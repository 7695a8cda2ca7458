# What Docker and Kubernetes workers run: the code and its packages. torch from PyPI brings CUDA.
FROM python:3.11-slim
WORKDIR /opt/textgen
COPY requirements.txt .
RUN pip install --no-cache-dir -r requirements.txt
COPY . .
ENV PYTHONPATH=/opt/textgen
