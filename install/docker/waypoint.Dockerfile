# The waypoint. Build from the top of the repository:
#   docker build -f install/docker/waypoint.Dockerfile -t ambit/waypoint:0.1.0 .
FROM rust:1.95-bookworm AS build
# BoringSSL is compiled from its source.
RUN apt-get update && apt-get install -y --no-install-recommends clang cmake g++ libclang-dev lld make && rm -rf /var/lib/apt/lists/*
WORKDIR /src
COPY . .
RUN cargo build --release --locked --package ambit-waypoint --bin waypoint

# Nothing but libc and the user `nonroot`.
FROM gcr.io/distroless/cc-debian12:nonroot
COPY --from=build /src/target/release/waypoint /usr/local/bin/waypoint
USER 1337:1337
ENTRYPOINT ["/usr/local/bin/waypoint"]
