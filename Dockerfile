# One small image for each program: `docker build --target apiproxy .`
#
# BIN_SOURCE=compile (the default) compiles here, with caches that outlive a build. BIN_SOURCE=prebuilt takes the
# programs, and ca-certificates.crt, from dist/: for a machine that has compiled them already.
#
# For amd64 and arm64, both from either: `docker buildx build --platform linux/amd64,linux/arm64 --target apiproxy .`
# The compiler runs on the builder's own processor, and nothing below runs on the target's, so no emulation is needed.
ARG BIN_SOURCE=compile

# A tag can be moved. To build on what was looked at once: --build-arg DEBIAN_DIGEST=@sha256:..., as .env has it for images that are run.
ARG RUST_DIGEST=
ARG DEBIAN_DIGEST=

FROM --platform=$BUILDPLATFORM rust:1.95.0-bookworm${RUST_DIGEST} AS compile
ARG BUILDARCH
ARG TARGETARCH
WORKDIR /src
# For the other processor: its standard library, linker and C library, and what tells cargo and the cc crate of them.
RUN case "$TARGETARCH" in \
        amd64) machine=x86_64 ;; \
        arm64) machine=aarch64 ;; \
        *) echo "TARGETARCH=$TARGETARCH: expected amd64 or arm64" >&2; exit 1 ;; \
    esac \
    && triple="$machine-unknown-linux-gnu" \
    && printf 'export CARGO_BUILD_TARGET=%s\n' "$triple" > /cross \
    && if [ "$TARGETARCH" != "$BUILDARCH" ]; then \
        rustup target add "$triple" \
        && apt-get update \
        && apt-get install --yes --no-install-recommends \
            "gcc-$(echo "$machine" | tr _ -)-linux-gnu" "libc6-dev-$TARGETARCH-cross" \
        && rm -rf /var/lib/apt/lists/* \
        && printf 'export CARGO_TARGET_%s_UNKNOWN_LINUX_GNU_LINKER=%s-linux-gnu-gcc\n' \
            "$(echo "$machine" | tr a-z A-Z)" "$machine" >> /cross; \
    fi
COPY . .
# Sources change with every build and crates do not, so what is kept is cargo's own caches rather than a layer. They are
# locked because the builds for two processors may run at once, and a registry or a target directory is for one cargo.
RUN --mount=type=cache,target=/usr/local/cargo/registry,sharing=locked \
    --mount=type=cache,target=/src/target,sharing=locked \
    . /cross \
    && cargo build --locked --release \
        --package natsway-apiproxy --package natsway-worker --package natsway-provisioner \
        --package natsway-partitioned-consumer --package natsway-shipper \
        --bins --features natsway-partitioned-consumer/cli \
    && mkdir /out \
    && cd "target/$CARGO_BUILD_TARGET/release" \
    && cp apiproxy worker provisioner producer consumer cg /etc/ssl/certs/ca-certificates.crt /out/

FROM debian:bookworm-20260803-slim${DEBIAN_DIGEST} AS prebuilt
COPY dist/ /out/

FROM ${BIN_SOURCE} AS bins

FROM --platform=$BUILDPLATFORM debian:bookworm-20260803-slim${DEBIAN_DIGEST} AS tree
RUN mkdir --mode=0700 --parents /tree/data

# What all of them stand on: no shell is needed, no package is installed, nobody is root.
FROM debian:bookworm-20260803-slim${DEBIAN_DIGEST} AS base
COPY --from=bins /out/ca-certificates.crt /etc/ssl/certs/ca-certificates.crt
# Volumes that are mounted at /data are writable for the user below.
COPY --from=tree --chown=65532:65532 /tree/ /
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
