# The node's tunnel. Build from the top of the repository:
#   docker build -f install/docker/ztunnel.Dockerfile -t ambit/ztunnel:0.1.0 .
FROM rust:1.95-bookworm AS build
# BoringSSL is compiled from its source.
RUN apt-get update && apt-get install -y --no-install-recommends clang cmake g++ libclang-dev lld make && rm -rf /var/lib/apt/lists/*
WORKDIR /src
COPY . .
RUN cargo build --release --locked --package ambit-ztunnel --bin ztunnel

FROM gcr.io/distroless/cc-debian12
COPY --from=build /src/target/release/ztunnel /usr/local/bin/ztunnel
# Root, for the kernel gives a program of anybody else none of the capabilities that the chart grants.
USER 0:1337
WORKDIR /
ENTRYPOINT ["/usr/local/bin/ztunnel"]
