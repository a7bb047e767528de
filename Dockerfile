# A PostgreSQL server that keeps itself backed up. Built by docker, podman or buildah:
#
#   docker build --tag nrt_backup:17 .
#   docker build --tag nrt_backup:15 --build-arg PG_MAJOR=15 .
#
# Podman and buildah need --format docker: OCI's own format of an image knows no health check.
ARG PG_MAJOR=17
# Any image that keeps to the contract of the official one, on Debian 12 or newer.
ARG BASE_IMAGE=postgres:${PG_MAJOR}-trixie
# What was built on Debian 12 runs on the newer ones, too.
ARG RUST_IMAGE=rust:1.95-bookworm

FROM ${RUST_IMAGE} AS rust
# The official image comes without rustfmt, by which pgrx formats what it generates.
RUN rustfmt --version || rustup component add rustfmt

# The command knows no version of PostgreSQL: images of several versions share this stage.
FROM rust AS command
WORKDIR /src
COPY Cargo.toml Cargo.lock ./
COPY crates crates
COPY src src
COPY tests tests
RUN cargo build --locked --release --package nrt-cli \
    && install -D target/release/nrt-backup /out/nrt-backup

# The extension is built for the very PostgreSQL that will load it. PG_MAJOR is the base image's.
FROM ${BASE_IMAGE} AS extension
RUN apt-get update \
    && DEBIAN_FRONTEND=noninteractive apt-get install --yes --no-install-recommends \
        ca-certificates gcc libc6-dev libclang-dev "postgresql-server-dev-${PG_MAJOR}"
COPY --from=rust /usr/local/rustup /usr/local/rustup
COPY --from=rust /usr/local/cargo /usr/local/cargo
ENV RUSTUP_HOME=/usr/local/rustup CARGO_HOME=/usr/local/cargo PATH=/usr/local/cargo/bin:$PATH
WORKDIR /src
COPY Cargo.toml Cargo.lock nrt_backup.control ./
COPY crates crates
COPY sql sql
COPY src src
COPY tests tests
RUN PGRX_PG_CONFIG_PATH="/usr/lib/postgresql/${PG_MAJOR}/bin/pg_config" \
        cargo build --locked --release --package nrt_backup \
        --no-default-features --features "pg${PG_MAJOR}"
COPY --from=command /out/nrt-backup /tmp/nrt-backup
RUN set -eu; \
    config="/usr/lib/postgresql/${PG_MAJOR}/bin/pg_config"; \
    version="$(sed -n '/^\[workspace.package\]/,/^$/s/^version = "\(.*\)"/\1/p' Cargo.toml)"; \
    extensions="/out$("$config" --sharedir)/extension"; \
    install -D -m 0644 target/release/libnrt_backup.so "/out$("$config" --pkglibdir)/nrt_backup.so"; \
    install -D -m 0644 -t "$extensions" sql/nrt_backup--*.sql; \
    sed "s/@CARGO_VERSION@/$version/" nrt_backup.control >"$extensions/nrt_backup.control"; \
    chmod 0644 "$extensions/nrt_backup.control"; \
    install -D -m 0755 /tmp/nrt-backup "/out$("$config" --bindir)/nrt-backup"

FROM ${BASE_IMAGE}
# The directories may be written by everybody, like the official image's PGDATA: the container may
# run as any user. Whoever starts first in them makes them its own.
RUN set -eu; \
    apt-get update; \
    DEBIAN_FRONTEND=noninteractive apt-get install --yes --no-install-recommends \
        ca-certificates pgbackrest rclone; \
    rm -rf /var/lib/apt/lists/* /var/cache/apt/*.bin /var/log/apt /var/log/dpkg.log; \
    programs="/usr/lib/postgresql/${PG_MAJOR}/bin"; \
    ln -s "$programs/nrt-backup" /usr/local/bin/nrt-backup; \
    mkdir /usr/local/lib/nrt-backup; \
    ln -s "$programs/nrt-backup" /usr/local/lib/nrt-backup/postgres; \
    ln -sf "$PGDATA/nrt_backup/pgbackrest.conf" /etc/pgbackrest.conf; \
    install -d -o postgres -g postgres /backup; \
    install -d -o postgres -g postgres -m 1777 /backup/local /backup/logs /var/lib/nrt-backup
COPY container/10-nrt_backup.sql /docker-entrypoint-initdb.d/
COPY --from=extension /out/ /

ARG VERSION=unreleased
LABEL org.opencontainers.image.title="nrt_backup" \
      org.opencontainers.image.description="A PostgreSQL server that keeps itself backed up, off-site and provably restorable" \
      org.opencontainers.image.source="https://github.com/nrt-backup/nrt_backup" \
      org.opencontainers.image.licenses="MIT" \
      org.opencontainers.image.version="${VERSION}"

VOLUME ["/backup/local", "/backup/logs"]
# A restore of a large cluster takes its time; it counts as starting for so long at least.
HEALTHCHECK --interval=30s --timeout=20s --start-period=5m --retries=3 \
    CMD ["nrt-backup", "health"]
# A fast shutdown, as in the official image.
STOPSIGNAL SIGINT
ENTRYPOINT ["nrt-backup", "entrypoint"]
CMD ["postgres"]
