# Two stages: one that compiles redlockd, and the image itself.
#
#   docker build -t redlockd .
#
# Whoever has a binary already (a CI job, a machine without a registry) builds the image from a folder that
# holds nothing but that binary, named `redlockd`; then the first stage compiles nothing, and needs no Rust:
#
#   docker build -t redlockd --build-arg BUILD_IMAGE=debian:bookworm-slim -f Dockerfile FOLDER
#
# This is decided inside the first stage, and not by a choice between stages, because the classic builder
# (Docker without buildx, docker-compose 1.x) runs every stage above the last one, whether it is used or not.
# The binary has to run with Debian 12's C library.

ARG BUILD_IMAGE=rust:1-bookworm
FROM ${BUILD_IMAGE} AS builder
# The classic builder leaves this stage behind as an untagged image; the label is there to find it by:
# docker image prune --filter label=redlockd.stage=builder
LABEL redlockd.stage=builder
WORKDIR /src
COPY . .
# Everything that the image gets is laid out under /out. The CA certificates are for rediss:// nodes with
# certificates of public authorities. The Rust image has them; a Debian slim image has none, and then those
# nodes need a CA file of their own.
RUN set -eu; \
    binary=redlockd; \
    if [ ! -f "$binary" ]; then \
        cargo build --profile dist --locked --bin redlockd; \
        binary=target/dist/redlockd; \
    fi; \
    install -D -m 0755 "$binary" /out/usr/local/bin/redlockd; \
    certificates=/etc/ssl/certs/ca-certificates.crt; \
    if [ -f "$certificates" ]; then install -D -m 0644 "$certificates" "/out$certificates"; fi

FROM debian:bookworm-slim
RUN useradd --uid 10001 --user-group --no-create-home --home-dir /nonexistent \
        --shell /usr/sbin/nologin redlockd
COPY --from=builder /out/ /
# A number, so that Kubernetes' runAsNonRoot can tell that it is not root.
USER 10001:10001
# gRPC, and metrics with /livez and /readyz. redlockd listens on loopback unless told otherwise: in a container
# set REDLOCKD_LISTEN=0.0.0.0:50051 and REDLOCKD_METRICS_LISTEN=0.0.0.0:9464. They are not set here, because
# the environment has precedence over a configuration file and would silently overrule a mounted one.
EXPOSE 50051 9464
# No HEALTHCHECK: the image has no HTTP client, and whoever runs it can probe gRPC health or /livez.
ENTRYPOINT ["redlockd"]
CMD ["serve"]
