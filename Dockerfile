# One small image for each program: `docker build --target apiproxy .`
#
# BIN_SOURCE=compile (the default) compiles here, with caches that outlive a build. BIN_SOURCE=prebuilt takes the
# programs, and ca-certificates.crt, from dist/: for a machine that has compiled them already.
ARG BIN_SOURCE=compile

FROM rust:1.95.0-bookworm AS compile
WORKDIR /src
COPY . .
# Sources change with every build and crates do not, so what is kept is cargo's own caches rather than a layer.
RUN --mount=type=cache,target=/usr/local/cargo/registry \
    --mount=type=cache,target=/src/target \
    cargo build --locked --release \
        --package natsway-apiproxy --package natsway-worker --package natsway-provisioner \
        --package natsway-partitioned-consumer --bins --features natsway-partitioned-consumer/cli \
    && mkdir /out \
    && cp target/release/apiproxy target/release/worker target/release/provisioner \
        target/release/producer target/release/consumer target/release/cg /out/ \
    && cp /etc/ssl/certs/ca-certificates.crt /out/

FROM debian:bookworm-20260803-slim AS prebuilt
COPY dist/ /out/

FROM ${BIN_SOURCE} AS bins

# What all of them stand on: no shell is needed, no package is installed, nobody is root.
FROM debian:bookworm-20260803-slim AS base
COPY --from=bins /out/ca-certificates.crt /etc/ssl/certs/ca-certificates.crt
# Volumes that are mounted here are writable for the user below.
RUN mkdir --mode=0700 /data && chown 65532:65532 /data
USER 65532:65532
WORKDIR /data

FROM base AS apiproxy
COPY --from=bins /out/apiproxy /usr/local/bin/apiproxy
# What listens in a container listens to others.
ENV NATSWAY_LISTEN=0.0.0.0:8080 NATSWAY_ADMIN_LISTEN=0.0.0.0:8081
EXPOSE 8080 8081
HEALTHCHECK --interval=5s --timeout=3s --start-period=15s --retries=3 CMD ["apiproxy", "healthcheck"]
ENTRYPOINT ["apiproxy"]

FROM base AS worker
COPY --from=bins /out/worker /usr/local/bin/worker
ENTRYPOINT ["worker"]

FROM base AS provisioner
COPY --from=bins /out/provisioner /usr/local/bin/provisioner
HEALTHCHECK --interval=10s --timeout=8s --start-period=30s --retries=3 CMD ["provisioner", "status"]
ENTRYPOINT ["provisioner"]

FROM base AS producer
COPY --from=bins /out/producer /usr/local/bin/producer
ENTRYPOINT ["producer"]

FROM base AS consumer
COPY --from=bins /out/consumer /out/cg /usr/local/bin/
ENTRYPOINT ["consumer"]
