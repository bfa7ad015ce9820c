# The node agent, and the plugin that it puts on the node. Build from the top of the repository:
#   docker build -f install/docker/cni.Dockerfile -t ambit/cni:0.1.0 .
FROM rust:1.95-bookworm AS build
# BoringSSL is compiled from its source.
RUN apt-get update && apt-get install -y --no-install-recommends clang cmake g++ libclang-dev lld make && rm -rf /var/lib/apt/lists/*
WORKDIR /src
COPY . .
RUN cargo build --release --locked --package ambit-cni --bin ambit-cni-agent
# The plugin runs on the node, with whatever libc is there: it brings its own. A target that is named keeps the flag away
# from build scripts.
RUN RUSTFLAGS="-C target-feature=+crt-static" cargo build --release --locked --package ambit-cni --bin ambit-cni \
        --target "$(uname -m)-unknown-linux-gnu" --target-dir static \
    && cp "static/$(uname -m)-unknown-linux-gnu/release/ambit-cni" target/release/ambit-cni

# The agent calls nft and ip, and operators who look into a pod call nsenter.
FROM debian:bookworm-slim
RUN apt-get update && apt-get install -y --no-install-recommends nftables iproute2 util-linux && rm -rf /var/lib/apt/lists/*
COPY --from=build /src/target/release/ambit-cni-agent /usr/local/bin/ambit-cni-agent
COPY --from=build /src/target/release/ambit-cni /usr/local/bin/ambit-cni
# Root, for the kernel gives a program of anybody else none of the capabilities that the chart grants.
USER 0:0
ENTRYPOINT ["/usr/local/bin/ambit-cni-agent"]
