# The image of every role: webserver, daemon, code location, run and step pods, queue workers.
#
#   docker buildx build --platform linux/amd64,linux/arm64 -t montage-ai:latest .
#   deploy/build-image            the same without a registry: debootstrap and buildah
#
# BASE is any Debian from bookworm (12) on. GPU_DRIVERS="" OTHER_GPU_DRIVERS="" make a smaller image for nodes without GPUs.
ARG BASE=debian:bookworm-slim

FROM ${BASE} AS packages
RUN apt-get update && apt-get install -qy --no-install-recommends ca-certificates python3-venv
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
# Wheels alone, by their hashes: nothing is compiled here, for no architecture. The lock file names all there is to install.
COPY deploy/requirements.lock /requirements.lock
RUN python3 -m venv --without-pip /opt/montage && python3 -m venv /opt/pip \
    && /opt/pip/bin/pip --python /opt/montage/bin/python install --quiet --no-compile --no-deps --require-hashes \
        --only-binary :all: -r /requirements.lock
# kubernetes.aio is a second client, which nothing here imports. The bytecode is trusted as it is, whatever the files'
# times: importing it saves a pod 4.5 CPU-seconds.
RUN rm -r /opt/montage/lib/python3.*/site-packages/kubernetes/aio \
    && find /opt/montage -depth -type d \( -name tests -o -name __pycache__ \) -exec rm -r {} + \
    && find /opt/montage \( -name '*.map' -o -name '*.pyi' \) -delete \
    && /opt/montage/bin/python -m compileall -q -j 0 --invalidation-mode unchecked-hash /opt/montage/lib

# A layer of its own, so that a change of the program costs a node 2 MB to fetch.
FROM packages AS program
RUN /opt/pip/bin/pip install --quiet setuptools==80.9.0
WORKDIR /src
COPY LICENSE MANIFEST.in README.md pyproject.toml ./
COPY montage_assets montage_assets
RUN /opt/pip/bin/pip wheel --quiet --no-deps --no-build-isolation --wheel-dir /wheel . \
    && /opt/pip/bin/pip --python /opt/montage/bin/python install --quiet --no-compile --no-deps --root /program /wheel/*.whl \
    && /opt/montage/bin/python -m compileall -q -j 0 --invalidation-mode unchecked-hash \
        -s /program /program/opt/montage/lib

FROM ${BASE}
# What the pinned ffmpeg opens at run time: libva (VAAPI) and its drivers for AMD and Intel, the Vulkan loader and
# drivers, Intel's two runtimes for QSV (libmfx1 up to the 10th generation, libmfx-gen1.2 after it). NVENC's
# libraries come from the node by NVIDIA's container runtime. AMF's (libamfrt64.so.1) is not free software: without it
# AMD nodes encode by VAAPI.
ARG GPU_DRIVERS="libva2 libva-drm2 libdrm2 libvulkan1 mesa-va-drivers mesa-vulkan-drivers"
# Not in every release and architecture: what there is of these is installed.
ARG OTHER_GPU_DRIVERS="intel-media-va-driver libmfx1 libmfx-gen1.2"
RUN apt-get update \
    && for package in ${OTHER_GPU_DRIVERS}; do \
        if apt-cache show "$package" >/dev/null 2>&1; then found="$found $package"; else echo "no $package here"; fi; \
    done \
    && apt-get install -qy --no-install-recommends ca-certificates python3 tini ${GPU_DRIVERS} ${found:-} \
    && apt-get clean && rm -rf /var/lib/apt/lists/* /var/cache/* /var/log/* /usr/share/doc /usr/share/man /usr/share/locale \
    && groupadd --gid 10001 montage \
    && useradd --uid 10001 --gid 10001 --no-create-home --home-dir /tmp --shell /usr/sbin/nologin montage \
    && install -d -o montage -g montage /data /data/input /data/output
COPY --from=packages /opt/montage /opt/montage
COPY --from=program /program/opt/montage /opt/montage
COPY deploy/entrypoint /usr/local/bin/entrypoint
COPY workspace.yaml /opt/dagster/workspace.yaml
# Only /data and /tmp are ever written to. NVIDIA's runtime leaves out the video libraries unless it is asked for them.
ENV PATH=/opt/montage/bin:$PATH HOME=/tmp MONTAGE_DATA=/data PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 \
    NVIDIA_DRIVER_CAPABILITIES=compute,video,utility
WORKDIR /opt/dagster
USER 10001:10001
EXPOSE 8080
ENTRYPOINT ["tini", "--", "entrypoint"]
CMD ["webserver"]
